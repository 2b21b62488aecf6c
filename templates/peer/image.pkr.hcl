# The peer of `invoke bench build`: what a careful user of plain Packer writes to make the same image.
# One file, shell provisioners, packages by apt inside the guest, qemu-img and tar for the exports; nothing is cached.
# It starts from a minimal disk or from one like Debian's cloud image: what that lacks is what apt installs.
# Every option exists in Packer 1.6.6 and in today's releases.
packer {
  required_version = ">= 1.6.6"
}

variable "base" { type = string }        # qcow2 to start from
variable "kernel" { type = string }      # its kernel and initrd: the base has no boot loader yet
variable "initrd" { type = string }
variable "payload" { type = string }     # tar of provision/, the pinned files and release.json
variable "provision" { type = string }   # provision.sh
variable "export" { type = string }      # export.sh
variable "packages" { type = string }    # what apt installs, separated by spaces
variable "sources" { type = string }     # lines for sources.list, separated by semicolons
variable "apt_options" { type = string } # what this host's apt was told about the mirror's dates
variable "customize" { type = string }   # script of provision/ to run behind apt, if the base has not had it
variable "initrd_drivers" { type = string }
variable "steps" { type = string }       # scripts of provision/ in order, separated by spaces
variable "versions" { type = string }    # NAME_VERSION=… of the pinned files, separated by spaces
variable "name" { type = string }
variable "disk_size" { type = string }
variable "accelerator" { type = string }
variable "cpu" { type = string }
variable "cpus" { type = number }
variable "memory" { type = number }
variable "private_key" { type = string }
variable "public_key" { type = string } # base64
variable "serial" { type = string }
variable "work" { type = string }   # folder that Packer makes for its disk
variable "output" { type = string } # folder that takes the exported files

source "qemu" "image" {
  disk_image       = true
  iso_url          = var.base
  iso_checksum     = "none"
  format           = "qcow2"
  disk_size        = var.disk_size
  skip_compaction  = true # export.sh compresses
  disk_interface   = "virtio"
  disk_discard     = "unmap"
  disk_cache       = "unsafe"
  output_directory = var.work
  vm_name          = "disk.qcow2"

  accelerator = var.accelerator
  cpus        = var.cpus
  memory      = var.memory
  net_device  = "virtio-net-pci"
  headless    = true
  boot_wait   = "-1s"
  disable_vnc = true # with `-vnc none` below: its server has no password, and QEMU's monitor would be behind it

  communicator           = "ssh"
  ssh_username           = "root"
  ssh_private_key_file   = var.private_key
  ssh_timeout            = "10m"
  ssh_handshake_attempts = 1000
  shutdown_command       = "systemctl --no-block poweroff"

  # The kernel starts what answers ssh and no more, as in our own bake, which goes further and masks single units.
  qemuargs = [
    ["-nodefaults"],
    ["-no-user-config"],
    ["-monitor", "none"],
    ["-vnc", "none"],
    ["-kernel", var.kernel],
    ["-initrd", var.initrd],
    ["-append", "root=LABEL=root rw console=ttyS0 no_timer_check systemd.unit=ssh.service systemd.wants=systemd-networkd.service cloud-init=disabled systemd.firstboot=off systemd.mount-extra=tmpfs:/root/.ssh:tmpfs:mode=0700"],
    ["-cpu", var.cpu],
    ["-netdev", "user,id=user.0,hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22"],
    ["-device", "virtio-net-pci,netdev=user.0"],
    ["-device", "virtio-rng-pci"],
    ["-serial", "file:${var.serial}"],
    ["-smbios", "type=11,value=io.systemd.credential.binary:ssh.authorized_keys.root=${var.public_key}"],
    ["-vga", "none"],
    ["-display", "none"],
  ]
}

build {
  sources = ["source.qemu.image"]

  provisioner "file" {
    source      = var.payload
    destination = "/tmp/payload.tar"
  }

  provisioner "shell" {
    script = var.provision
    environment_vars = [
      "PACKAGES=${var.packages}",
      "SOURCES=${var.sources}",
      "APT_OPTIONS=${var.apt_options}",
      "CUSTOMIZE=${var.customize}",
      "INITRD_DRIVERS=${var.initrd_drivers}",
      "STEPS=${var.steps}",
      "VERSIONS=${var.versions}",
    ]
  }

  post-processor "shell-local" {
    script = var.export
    environment_vars = [
      "DISK=${var.work}/disk.qcow2",
      "NAME=${var.name}",
      "CPUS=${var.cpus}",
      "MEMORY=${var.memory}",
      "OUTPUT=${var.output}",
    ]
  }
}
