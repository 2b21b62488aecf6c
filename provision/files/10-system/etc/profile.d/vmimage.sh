# shellcheck shell=sh
# Who sits at the console of a machine without a seed learns how to let ssh in. Over ssh there is a key already.
case $- in
    *i*)
        if [ ! -s "$HOME/.ssh/authorized_keys" ]; then
            echo 'ssh takes keys only. To add yours: mkdir -pm700 ~/.ssh; nano ~/.ssh/authorized_keys'
        fi
        # For who connects from elsewhere, and is asked whether this is the right machine.
        case $(tty) in
            /dev/tty*) ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub | cut -d ' ' -f 2 | sed 's/^/ssh host key: /' ;;
        esac
        ;;
esac
