import { type DeployFailure, deployedPorts, nextDeployStep, planPorts } from "../../core/deploy.ts";
import { BerthError } from "../../core/errors.ts";
import {
  type DeploymentRun,
  holdLease,
  moveDeployment,
  readBefore,
  readDeploymentRun,
  readPorts,
  removeEarlier,
  stopEarlier,
  takeName,
  takePorts,
} from "../../db/deployment-runs.ts";
import { findImage } from "../../db/images.ts";
import type { ClaimedJob } from "../../db/leases.ts";
import { insertPort, newPort, PortRefused, portError, touchContainer } from "../../db/ports.ts";
import { type Tx, transact, wake } from "../../db/scope.ts";
import { Changes, topics } from "../../db/wakeups.ts";
import { readLog } from "../../isolation/container-log.ts";
import { logPath } from "../container-start.ts";
import { createVersion } from "../deploy-container.ts";
import type { JobHandler } from "../runner.ts";
import type { Services } from "../services.ts";

/** Lines of the new container's log that a failure shows. */
const shownLines = 10;

/**
 * Takes a deployment through, step by step, each looked up in the rows anew: core/deploy.ts has the order. It waits for
 * what the container's host does, on whichever host this is.
 */
export const deploy: JobHandler = async (job, services, signal) => {
  const { connection, wakeups } = services;
  const id = job.subjectId ?? "";
  const changes = new Changes();
  const watched = new Map<string, () => void>();
  const watch = (topic: string) => {
    if (!watched.has(topic))
      watched.set(
        topic,
        wakeups.subscribe(topics.resource(topic), () => changes.wake()),
      );
  };
  try {
    watch(id);
    for (;;) {
      signal.throwIfAborted();
      const run = await readDeploymentRun(connection.sql, id);
      if (run === null) throw new BerthError("not_found", "The deployment is gone, with its source.");
      if (run.containerId !== null) watch(run.containerId);
      const step = nextDeployStep(run);
      switch (step.step) {
        case "create":
          await taking(services, job, run, (tx) => createVersion(tx, run, step.above));
          break;
        case "switch":
          await taking(services, job, run, (tx) => switchOver(tx, run));
          break;
        case "finish":
          await taking(services, job, run, async (tx) => {
            const doubt = step.confirmed ? {} : { doubt: unconfirmed() };
            if (await moveDeployment(tx, run, { status: "succeeded", ...doubt })) await stopEarlier(tx, run);
          });
          break;
        case "remove":
          await taking(services, job, run, (tx) => removeEarlier(tx, run, step.overdue));
          break;
        case "wait":
          await changes.next(step.atMostMs, signal);
          break;
        case "fail":
          throw await failure(services, run, step.code, step.detail);
        case "done":
          return { deploymentId: run.id, containerId: run.containerId, status: run.status };
      }
    }
  } finally {
    for (const unsubscribe of watched.values()) unsubscribe();
  }
};

/** One step as one transaction, while the job is this worker's. */
async function taking(
  services: Services,
  job: ClaimedJob,
  run: DeploymentRun,
  step: (tx: Tx) => Promise<void>,
): Promise<void> {
  const { sql } = services.connection;
  const scope = { projectId: run.projectId };
  try {
    await transact(sql, scope, async (tx) => {
      await holdLease(tx, job);
      await step(tx);
    });
  } catch (error) {
    throw error instanceof PortRefused ? await portError(sql, scope, error) : error;
  }
}

/** The new container works: its rows get the ports of the one before, and its source's name. */
async function switchOver(tx: Tx, run: DeploymentRun): Promise<void> {
  const { containerId, hostId, projectId } = run;
  if (containerId === null || hostId === null) throw new Error("only a deployment with a container switches");
  const before = await readBefore(tx, run);
  if (!(await moveDeployment(tx, run, { status: "switching", previousContainerId: before?.containerId ?? null })))
    return;
  const image = await findImage(tx, { projectId }, run.imageDigest);
  const wanted = image === null ? [] : deployedPorts(run.template, image.config);
  const plan = planPorts(wanted, await readPorts(tx, containerId), before?.hostId === hostId ? before.ports : []);
  await takePorts(tx, containerId, plan.take);
  for (const port of plan.add) await insertPort(tx, newPort(port, { projectId, containerId, hostId }));
  await takeName(tx, run, containerId);
  await touchContainer(tx, containerId);
  if (before !== null) await touchContainer(tx, before.containerId);
  await wake(tx, topics.host(hostId));
}

/** What is said of a deployment whose host went away with the switch. */
const unconfirmed = () =>
  new BerthError(
    "host_unavailable",
    "The ports are its container's, but its host has not said that it leads them there; it does when it is back.",
  );

/** Why the new container does not serve, with what it said last. */
async function failure(
  services: Services,
  run: DeploymentRun,
  code: DeployFailure,
  detail: string,
): Promise<BerthError> {
  const { host, config } = services;
  const lines: string[] = [];
  if (run.containerId !== null && run.hostId === host.id) {
    const last = { stdout: true, stderr: true, tail: shownLines };
    for await (const { text } of readLog(logPath(config.dataDir, run.containerId), last, null)) lines.push(text);
  }
  const said = lines.length === 0 ? "" : ` Its log ends:\n${lines.join("\n")}`;
  return new BerthError(code, `${detail}${said}`);
}
