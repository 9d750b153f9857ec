#!/bin/bash
# The agent, its Python and its settings into dracut's initramfs, if a volume is to be opened there.

check() {
    grep -Eq '^[^#].*[ ,]initramfs(,|$)' /etc/roomkey/volumes 2>/dev/null || return 255
    require_binaries python3 cryptsetup
}

depends() {
    echo bash dm
}

installkernel() {
    instmods dm_mod dm_crypt xts aesni_intel af_alg algif_skcipher algif_hash tpm_crb tpm_tis sev-guest \
        virtio_net virtio_blk virtio_pci
}

install() {
    local path place legacy library
    while read -r _ path place; do
        inst "$path" "$place"
        # Where a file goes to another place, dracut leaves out what it is linked with.
        for library in $(ldd "$path" 2>/dev/null | grep -o '/[^ ]*'); do inst "$library"; done
    done < <(python3 -I /usr/lib/roomkey/python_files.py /usr/lib/roomkey "$initdir")
    for legacy in /usr/lib/*/ossl-modules/legacy.so; do [ -e "$legacy" ] && inst "$legacy"; done
    inst_multiple cryptsetup ip sleep tail poweroff grep
    inst_simple /usr/lib/roomkey/open-volumes
    mkdir -p "$initdir/usr/sbin" "$initdir/etc/roomkey"
    printf '#!/bin/sh\nexec %s -I -S /usr/lib/roomkey/start.pyc "$@"\n' "$(readlink -f /usr/bin/python3)" \
        >"$initdir/usr/sbin/roomkey-agent"
    chmod 755 "$initdir/usr/sbin/roomkey-agent"
    cp -p /etc/roomkey/* "$initdir/etc/roomkey/"
    # A shell on the console would be the host's: it would ask for the key as this boot, or read what is open by then.
    # The kernel's command line can say otherwise, and is measured.
    if ! grep -Eq '^[^#].*[ ,]prompt(,|$)' /etc/roomkey/volumes; then
        mkdir -p "$initdir/etc/cmdline.d"
        echo 'rd.shell=0 rd.emergency=poweroff' >"$initdir/etc/cmdline.d/91roomkey.conf"
    fi
    inst_simple "$moddir/roomkey-volumes.service" /etc/systemd/system/roomkey-volumes.service
    inst_simple "$moddir/network" /usr/lib/roomkey/network
    mkdir -p "$initdir/etc/systemd/system/sysinit.target.wants"
    ln -s ../roomkey-volumes.service "$initdir/etc/systemd/system/sysinit.target.wants/roomkey-volumes.service"
}
