import type { ShownError } from "../../core/job.ts";
import { refName, trackedRefs } from "../../core/source.ts";
import { findBuild } from "../../db/builds.ts";
import { type DeploymentRow, findDeployment, findDeploymentOfBuild, listDeployments } from "../../db/deployments.ts";
import type { SourceRow } from "../../db/sources.ts";
import { Changes, topics } from "../../db/wakeups.ts";
import { readBuildLog } from "../build-logs.ts";
import type { Services } from "../context.ts";
import { hasSettled } from "../deployments.ts";
import type { BuiltBranch, PushedTo } from "./push-builds.ts";

/** A ref that a push has changed, as git names it; `commit` null: it was deleted. */
export interface UpdatedRef {
  ref: string;
  commit: string | null;
}

/** Prints a line, or several, on the pusher's terminal, each behind git's `remote: `. */
export type Print = (text: string) => Promise<void>;

const pollMs = 1_000;

/** Tells of a push: its builds' logs as they are written, and what they are deployed as, up to the URL. */
export async function reportPush(
  services: Services,
  pushed: PushedTo,
  source: SourceRow,
  updated: readonly UpdatedRef[],
  built: readonly BuiltBranch[],
  print: Print,
  signal: AbortSignal,
): Promise<void> {
  const { name } = source;
  for (const { ref, commit } of updated) {
    if (commit === null || built.some((branch) => branch.ref === ref)) continue;
    const tracked = trackedRefs(source.branches).map(refName).join(", ");
    await print(`${refName(ref)} is kept and does not build: ${name} builds ${tracked}.`);
  }
  for (const { ref, commit, buildId, started } of built) {
    if (!updated.some((each) => each.ref === ref)) continue;
    const what = `${refName(ref)} at ${commit.slice(0, 12)}`;
    if (buildId === null) await print(`${what} was built before.`);
    else {
      await print(started ? `Building ${what} (${buildId})` : `${what} has a build already (${buildId})`);
      await followBuild(services, pushed, source, buildId, print, signal);
    }
  }
}

async function followBuild(
  services: Services,
  pushed: PushedTo,
  source: SourceRow,
  buildId: string,
  print: Print,
  signal: AbortSignal,
): Promise<void> {
  const { sql } = services;
  const { scope } = pushed;
  for await (const rows of readBuildLog(services, scope, buildId, 0, true, signal)) {
    for (const { text } of rows ?? []) await print(text);
  }
  const build = await findBuild(sql, scope, buildId);
  if (signal.aborted || build === null) return;
  if (build.status !== "succeeded") {
    await print(
      build.error === null ? `The build was ${build.status}.` : `The build failed: ${failureText(build.error)}`,
    );
    await goesOn(services, pushed, source, print);
    return;
  }
  if (source.deploy === null) {
    await print(`Built ${build.tags.join(", ")} (${build.imageDigest ?? ""}); ${source.name} deploys nothing.`);
    return;
  }
  const deployment = await findDeploymentOfBuild(sql, scope, buildId);
  if (deployment === null) await print("Not deployed: a later build was.");
  else await followDeployment(services, pushed, source, deployment, print, signal);
}

/** Why a build failed, where and at what: once each, for a message may say them itself. */
export function failureText({ line, column, instruction, message }: ShownError): string {
  // A message that has a column begins with both.
  const where = line === undefined || column !== undefined ? "" : `Dockerfile line ${line}: `;
  if (instruction === undefined) return `${where}${message}`;
  const quoted = `\`${instruction}\``;
  return message.startsWith(quoted)
    ? `${where}${instruction}${message.slice(quoted.length)}`
    : `${where}${instruction}: ${message}`;
}

async function followDeployment(
  services: Services,
  pushed: PushedTo,
  source: SourceRow,
  { id }: DeploymentRow,
  print: Print,
  signal: AbortSignal,
): Promise<void> {
  const changes = new Changes();
  const unsubscribe = services.wakeups.subscribe(topics.resource(id), () => changes.wake());
  let told: string | null = null;
  try {
    for (;;) {
      const row = await findDeployment(services.sql, pushed.scope, id);
      if (signal.aborted || row === null) return;
      if (row.status !== told) await tellDeployment(services, pushed, source, row, print);
      told = row.status;
      if (hasSettled(row)) return;
      await changes.next(pollMs, signal);
    }
  } finally {
    unsubscribe();
  }
}

async function tellDeployment(
  services: Services,
  pushed: PushedTo,
  source: SourceRow,
  row: DeploymentRow,
  print: Print,
): Promise<void> {
  if (row.status === "starting") await print(`Starting it (${row.id})`);
  if (row.status === "failed") {
    await print(`Not deployed: ${row.detail ?? row.reason ?? ""}`);
    await goesOn(services, pushed, source, print);
  }
  if (row.status === "succeeded") {
    const tcp = row.ports.filter(({ protocol }) => protocol === "tcp");
    if (tcp.length === 0) await print(`${source.name} runs; it has no TCP port.`);
    for (const port of tcp) await print(`${source.name} is at ${urlOf(port)}`);
    if (row.detail !== null) await print(row.detail);
  }
}

/** What serves although this push did not come to it. */
async function goesOn(services: Services, { scope }: PushedTo, source: SourceRow, print: Print): Promise<void> {
  const filter = { sourceId: source.id, status: "succeeded" as const };
  const [last] = await listDeployments(services.sql, scope, filter, { after: null, limit: 1 });
  if (last !== undefined && last.containerId !== null) await print(`What ran before goes on (${last.containerId}).`);
}

function urlOf({ hostAddress, publicAddress, hostPort }: DeploymentRow["ports"][number]): string {
  const host = hostAddress === "0.0.0.0" ? publicAddress : hostAddress;
  return `http://${host.includes(":") ? `[${host}]` : host}:${hostPort}`;
}
