# shellcheck shell=sh
case $- in
    *i*) echo 'dev-env runs your services: dev-env status, dev-env up hello, dev-env services' ;;
esac
