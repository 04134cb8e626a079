#!/bin/sh
# Makes this Debian host a worker of an existing Berth, as a systemd service. Idempotent: run it again after an update.
#
#   sudo BERTH_DATABASE_URL=postgres://… BERTH_SECRET_KEY=… infra/install-worker.sh
#
# Run it from a clone that stays where it is. Settings go to /etc/berth/worker.env (root only); a setting that is not
# given keeps its value there.
set -eu

clone=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
settings=/etc/berth/worker.env

fail() {
  echo "install-worker: $1" >&2
  exit 1
}

[ "$(id -u)" = 0 ] || fail "this needs root: sudo $0"
command -v apt-get >/dev/null || fail "this needs Debian's apt-get"

packages=$(awk '$1 == "run" { print $2 }' "$clone/infra/packages.txt")
# npm is only needed for `npm ci`, and Node only until the pinned one is there.
command -v npm >/dev/null || packages="$packages npm"
missing=
for package in $packages; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
  echo "installing$missing"
  apt-get -qq update
  # shellcheck disable=SC2086 # a list of words
  DEBIAN_FRONTEND=noninteractive apt-get -qqy install --no-install-recommends $missing >/dev/null
fi

(cd "$clone" && node infra/bootstrap.mjs setup)

install -d -m 0700 /etc/berth
[ -e "$settings" ] || install -m 0600 /dev/null "$settings"
env | grep '^BERTH_' | while IFS='=' read -r name value; do
  grep -v "^$name=" "$settings" >"$settings.new" || true
  printf '%s=%s\n' "$name" "$value" >>"$settings.new"
  chmod 0600 "$settings.new"
  mv "$settings.new" "$settings"
done
grep -q '^BERTH_DATABASE_URL=' "$settings" || fail "BERTH_DATABASE_URL is needed: where this Berth's database is"
grep -q '^BERTH_SECRET_KEY=' "$settings" || fail "BERTH_SECRET_KEY is needed: the one that the API has"

sed "s|/opt/berth|$clone|g" "$clone/infra/systemd/berth-worker.service" >/etc/systemd/system/berth-worker.service
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  systemctl enable --quiet berth-worker.service
  systemctl restart berth-worker.service
  echo "berth-worker runs; systemctl status berth-worker"
else
  echo "berth-worker is installed; systemd does not run here, so it is not started"
fi
