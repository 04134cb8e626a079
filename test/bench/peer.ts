import { existsSync, readdirSync } from "node:fs";
import { parseSuite } from "./peer-index.ts";

/** A Docker Engine on this machine, as it can be run. */
export interface Peer {
  /** Where it is from, for people. */
  origin: string;
  /** The command that dockerd's options follow. */
  dockerd: readonly string[];
  /** The path of its command line's program. */
  docker: string;
  /** Directories of its programs, which come before the machine's. */
  programs: readonly string[];
  /** The directory of its command line's plugins; null: where the program looks for them. */
  plugins: string | null;
}

/** The one that is installed, Debian's docker.io; null: none is. */
export function installedPeer(): Peer | null {
  if (!existsSync("/usr/sbin/dockerd")) return null;
  return { origin: "installed", dockerd: ["dockerd"], docker: "/usr/bin/docker", programs: [], plugins: null };
}

/** Where the packages of a suite are unpacked. */
export function peerDirectory(suite: string): string {
  return new URL(`../../.cache/peers/${suite}`, import.meta.url).pathname;
}

/** In a mount namespace of its own: lays the first directory over the second one, and becomes the command that follows. */
const withLibraries = 'mount -t overlay -o "lowerdir=$1:$2" overlay "$2"; shift 2; exec "$@"';

/**
 * The one of another suite of Debian, as `npm run bench:peer` has unpacked it. Its daemon and what that starts (containerd,
 * runc) see that suite's C library in the place of the machine's, which is older; the program of its command line runs with
 * the machine's. Its containers see neither.
 * @throws when there is none
 */
export function unpackedPeer(name: string): Peer {
  const suite = parseSuite(name);
  const root = suite === null ? "" : peerDirectory(suite);
  if (suite === null || !existsSync(root))
    throw new Error(`there is no peer ${name}: npm run bench:peer -- ${name} unpacks it`);
  const triplet = readdirSync(`${root}/usr/lib`).find((each) => each.endsWith("-linux-gnu")) ?? "";
  // Another /usr/lib would not do: overlays stand on overlays twice at most, and runc makes one of its own program.
  const libraries = [`${root}/usr/lib/${triplet}`, `/usr/lib/${triplet}`];
  const separate = ["unshare", "--mount", "--propagation", "slave"];
  return {
    origin: `Debian ${suite}`,
    dockerd: [...separate, "sh", "-ec", withLibraries, "sh", ...libraries, "dockerd"],
    docker: `${root}/usr/bin/docker`,
    programs: [`${root}/usr/sbin`, `${root}/usr/bin`],
    plugins: `${root}/usr/libexec/docker/cli-plugins`,
  };
}
