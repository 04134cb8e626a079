import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { gunzipSync } from "node:zlib";
import { peerDirectory } from "./peer.ts";
import { type ArchiveFile, choosePackages, packageIndex, parseRelease, parseSuite } from "./peer-index.ts";

// `npm run bench:peer -- SUITE`: the Docker Engine of a suite of Debian, unpacked into .cache/peers/SUITE and not installed,
// for `npm run bench -- --peer SUITE`. Debian's signature is on the suite's release; digests lead from there to all else.

const archive = "http://deb.debian.org/debian";
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
const run = promisify(execFile);

async function download(path: string): Promise<Buffer> {
  const response = await fetch(`${archive}/${path}`, { signal: AbortSignal.timeout(300_000) });
  if (!response.ok) throw new Error(`${path}: HTTP ${response.status}`);
  return Buffer.from(await response.arrayBuffer());
}

/** @throws when its bytes are not what the archive's signed words say */
async function downloadChecked(path: string, { sha256 }: ArchiveFile): Promise<Buffer> {
  const bytes = await download(path);
  if (createHash("sha256").update(bytes).digest("hex") !== sha256)
    throw new Error(`${path} has another SHA-256 digest`);
  return bytes;
}

/** The text of a suite's release that is signed, and nothing beside it. @throws when gpgv does not find all signatures good */
async function signedRelease(suite: string, directory: string): Promise<string> {
  const file = join(directory, "InRelease");
  await writeFile(file, await download(`dists/${suite}/InRelease`));
  return (await run("gpgv", ["--keyring", keyring, "--output", "-", file])).stdout;
}

async function fetchPeer(suite: string): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), "berth-peer-"));
  try {
    const release = parseRelease(await signedRelease(suite, directory), suite);
    console.log(`Debian ${suite} as of ${release.date}`);
    // Whoever replays an old release gives us an older peer, whose versions are printed: no reason to go without one.
    if ((release.validUntil ?? Number.POSITIVE_INFINITY) < Date.now())
      console.warn("the mirror is behind: that is no longer valid, so this may not be the newest");
    const architecture = (await run("dpkg", ["--print-architecture"])).stdout.trim();
    const index = packageIndex(release, architecture);
    const byHash = index.path.replace("Packages.gz", `by-hash/SHA256/${index.sha256}`);
    const packed = await downloadChecked(`dists/${suite}/${byHash}`, index);
    const target = peerDirectory(suite);
    await rm(`${target}.new`, { recursive: true, force: true });
    await mkdir(`${target}.new`, { recursive: true });
    for (const each of choosePackages(gunzipSync(packed).toString())) {
      console.log(`${each.name.padEnd(13)} ${each.version}`);
      const deb = join(directory, `${each.name}.deb`);
      await writeFile(deb, await downloadChecked(each.path, each));
      await run("dpkg-deb", ["--extract", deb, `${target}.new`]);
      await rm(deb);
    }
    await rm(target, { recursive: true, force: true });
    await rename(`${target}.new`, target);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

const suite = parseSuite(process.argv[2] ?? "");
if (suite === null) {
  console.error("npm run bench:peer -- SUITE, such as trixie or sid");
  process.exitCode = 2;
} else {
  await fetchPeer(suite);
}
