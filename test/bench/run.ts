import { access } from "node:fs/promises";
import { removeKilled } from "../support/ownership.ts";
import { startRegistry, type TestRegistry } from "../support/registry.ts";
import { measureApi } from "./api.ts";
import { type Berth, startBerth } from "./berth.ts";
import { contextTar } from "./context.ts";
import { debianBase } from "./debian.ts";
import { type Docker, startDocker } from "./docker.ts";
import type { Engine } from "./engine.ts";
import { measureJobs } from "./jobs.ts";
import { installedPeer, unpackedPeer } from "./peer.ts";
import { measurePushes } from "./pushes.ts";
import { measureRebuilds } from "./rebuilds.ts";
import { measureSizes } from "./sizes.ts";
import { stampProgram } from "./stamp.ts";
import { measureStarts, startRows } from "./starts.ts";
import { formatTable, type Row } from "./table.ts";
import { measureTransfers, transferRows } from "./transfers.ts";

// `npm run bench [-- --runs N --only jobs,api,starts,rebuilds,pushes,transfers,sizes]`: the same work by Berth and by its peers
// on this machine, in turn, in one run. `--peer SUITE`: with the Docker Engine of another suite of Debian (peer-fetch.ts).
const option = (name: string) => process.argv[process.argv.indexOf(`--${name}`) + 1 || process.argv.length];
const runs = Number(option("runs") ?? 40);
const only = option("only")?.split(",");
const suite = option("peer");
const peer = suite === undefined ? installedPeer() : unpackedPeer(suite);
const wanted = (part: string) => only === undefined || only.includes(part);
const step = (text: string) => {
  console.error(text);
};

/** Measures both, one after the other. */
async function both<F>(of: (engine: Engine) => Promise<F>, berth: Engine, docker: Docker | null) {
  return { ours: await of(berth), peer: docker === null ? null : await of(docker) };
}

async function starts(berth: Engine, docker: Docker | null): Promise<Row[]> {
  const context = await contextTar({
    Dockerfile: Buffer.from('FROM scratch\nCOPY stamp /stamp\nCMD ["/stamp"]\n'),
    stamp: stampProgram(),
  });
  const measure = async (engine: Engine) => {
    await engine.build("bench-stamp:1", context);
    return measureStarts(engine, runs);
  };
  const { ours, peer } = await both(measure, berth, docker);
  return startRows(ours, peer);
}

async function transfers(berth: Engine, docker: Docker | null, registry: TestRegistry | null): Promise<Row[]> {
  const base = registry === null ? null : await debianBase();
  if (base === null || registry === null) {
    step("pulls and pushes are left out: docker-registry or mmdebstrap is not installed");
    return [];
  }
  const { ours, peer } = await both((engine) => measureTransfers(engine, base, registry), berth, docker);
  return transferRows(ours, peer);
}

const hasRegistry = await access("/usr/bin/docker-registry").then(
  () => true,
  () => false,
);
await removeKilled();
// Without the engines, and before them: these have no container engine as their peer.
if (wanted("jobs"))
  for (const { peer, rows } of await measureJobs()) console.log(`${formatTable(rows, "Berth", peer)}\n`);
if (wanted("api")) console.log(`${formatTable(await measureApi(), "Berth", "(no peer)")}\n`);

let berth: Berth | null = null;
let docker: Docker | null = null;
let registry: TestRegistry | null = null;
const ofEngines = ["starts", "rebuilds", "pushes", "transfers", "sizes"];
if (!ofEngines.some(wanted)) process.exit(0);
try {
  if (peer !== null) docker = await startDocker(peer);
  if (hasRegistry) registry = await startRegistry(null, docker?.hostAddress);
  berth = await startBerth(registry?.host ?? "127.0.0.1:5000");
  const rows: Row[] = [];
  if (wanted("starts")) rows.push(...(await starts(berth, docker)));
  if (wanted("rebuilds")) rows.push(...(await measureRebuilds(berth, docker)));
  if (wanted("pushes")) rows.push(...(await measurePushes(berth, docker)));
  if (wanted("transfers")) rows.push(...(await transfers(berth, docker, registry)));
  if (wanted("sizes")) rows.push(...(await measureSizes(berth, registry?.host ?? null)));
  if (docker !== null) console.log(`${docker.name} (${peer?.origin}): ${docker.parts}`);
  console.log(formatTable(rows, "Berth", docker?.name ?? "(docker.io is not installed)"));
} finally {
  await berth?.close();
  await docker?.close();
  await registry?.stop();
}
