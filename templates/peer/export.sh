#!/bin/sh
# Makes the peer's files, as toolchains commonly do: qemu-img, sha256sum, tar, one after the other.
# Environment: DISK, NAME, CPUS, MEMORY (MiB), OUTPUT.
set -eu
qemu-img convert -c -f qcow2 -O qcow2 -o compression_type=zstd "$DISK" "$OUTPUT/$NAME.qcow2"

vmdk=$NAME-disk1.vmdk
qemu-img convert -f qcow2 -O vmdk -o subformat=streamOptimized "$DISK" "$OUTPUT/$vmdk"
capacity=$(qemu-img info --output=json "$DISK" | sed -n 's/.*"virtual-size": \([0-9]*\).*/\1/p' | tail -n 1)
cat > "$OUTPUT/$NAME.ovf" <<OVF
<?xml version="1.0" encoding="UTF-8"?>
<Envelope ovf:version="1.0" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References><File ovf:id="disk-file" ovf:href="$vmdk" ovf:size="$(stat -c %s "$OUTPUT/$vmdk")"/></References>
  <DiskSection><Info>The disk</Info>
    <Disk ovf:diskId="disk" ovf:fileRef="disk-file" ovf:capacity="$capacity"
      ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/></DiskSection>
  <NetworkSection><Info>The network</Info><Network ovf:name="NAT"/></NetworkSection>
  <VirtualSystem ovf:id="$NAME"><Info>A machine</Info><Name>$NAME</Name>
    <OperatingSystemSection ovf:id="96"><Info>The operating system</Info></OperatingSystemSection>
    <VirtualHardwareSection><Info>The hardware</Info>
      <System><vssd:ElementName>Virtual Hardware Family</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType></System>
      <Item><rasd:ElementName>processors</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>$CPUS</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ElementName>memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>$MEMORY</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:ElementName>SATA</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>vmware.sata.ahci</rasd:ResourceSubType><rasd:ResourceType>20</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>Disk</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/disk</rasd:HostResource><rasd:InstanceID>4</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>7</rasd:AddressOnParent><rasd:Connection>NAT</rasd:Connection>
        <rasd:ElementName>Network adapter</rasd:ElementName><rasd:InstanceID>5</rasd:InstanceID>
        <rasd:ResourceSubType>E1000</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType></Item>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
OVF
cd "$OUTPUT"
sha256sum --tag "$NAME.ovf" "$vmdk" | sed 's/^SHA256 (/SHA256(/; s/) = /)= /' > "$NAME.mf"
tar --format=ustar -cf "$NAME.ova" "$NAME.ovf" "$vmdk" "$NAME.mf"
rm "$NAME.ovf" "$vmdk" "$NAME.mf"
sha256sum "$NAME.qcow2" "$NAME.ova" > SHA256SUMS
