import type { ContainerSpec } from "../core/container.ts";
import { deployedHealth, deployedPorts, planPorts } from "../core/deploy.ts";
import { BerthError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { isOverfull, place } from "../core/placement.ts";
import { checkQuota } from "../core/quota.ts";
import { insertContainer } from "../db/containers.ts";
import { type DeploymentRun, dropContainer, moveDeployment, readBefore } from "../db/deployment-runs.ts";
import { appendEvent } from "../db/events.ts";
import { listHosts } from "../db/hosts.ts";
import { findImage } from "../db/images.ts";
import { insertPort, newPort } from "../db/ports.ts";
import { readQuota, readUsage } from "../db/projects.ts";
import { lock, type Tx, wake } from "../db/scope.ts";
import { topics } from "../db/wakeups.ts";

/** The label that names a deployed container's source. */
const sourceLabel = "berth.source";

/**
 * Makes a deployment's container: on the host of the one before, since ports are a host's, and with only those ports that
 * it does not take over later. One that could not start makes way.
 * @param above of ports that the host chooses
 * @throws BerthError `image_not_found`, `quota_exceeded`, `no_capacity`, `port_taken`, `ports_exhausted`
 */
export async function createVersion(tx: Tx, run: DeploymentRun, above: number): Promise<void> {
  const { projectId, template, sourceName } = run;
  const scope = { projectId };
  await lock(tx, `quota:${projectId}`);
  const image = await findImage(tx, scope, run.imageDigest);
  if (image === null) throw new BerthError("image_not_found", "The image that was built is gone.");
  const quota = await readQuota(tx, scope);
  if (quota === null) throw new BerthError("not_found", "There is no such project.");
  const before = await readBefore(tx, run);
  const wanted = deployedPorts(template, image.config);
  const { add } = planPorts(wanted, [], before?.ports ?? []);
  const { cpus, memory, pids, disk } = template;
  checkQuota(quota, await readUsage(tx, scope), { containers: 1, cpus, memory, disk, ports: add.length });
  const placement = before === null ? template.spec.placement : { host: before.hostId };
  const host = place(await listHosts(tx), { cpus, memory, pids, disk }, placement);
  await lock(tx, `host:${host.id}`);

  const id = newId("container");
  const { asked: healthcheck } = deployedHealth(template, image.config, wanted);
  const spec: ContainerSpec = {
    ...template.spec,
    image: run.imageReference,
    tty: false,
    openStdin: false,
    autoRemove: false,
    pull: "missing",
    ...(healthcheck === undefined ? {} : { healthcheck }),
  };
  // Its source's name is its own when the ports are.
  const name = `${sourceName.slice(0, 56)}-${id.slice(-6)}`;
  await insertContainer(tx, {
    ...{ id, projectId, hostId: host.id, name, spec, cpus, memory, pids, disk, start: true },
    labels: { ...template.labels, [sourceLabel]: sourceName },
    imageReference: run.imageReference,
    imageDigest: image.digest,
  });
  const of = { projectId, containerId: id, hostId: host.id };
  for (const port of add) await insertPort(tx, { ...newPort(port, of), above });
  if (run.containerId !== null) await dropContainer(tx, run.containerId);
  if ((await listHosts(tx, host.id)).some(isOverfull)) {
    throw new BerthError("no_capacity", `The host ${host.name} has filled up in the meantime.`);
  }
  await appendEvent(tx, {
    projectId,
    type: "container.created",
    subjectId: id,
    data: { name, image: run.imageReference, hostId: host.id, deploymentId: run.id },
  });
  if (!(await moveDeployment(tx, run, { status: "starting", containerId: id }))) {
    throw new BerthError("superseded", "A newer build of the source was deployed in its place.");
  }
  await wake(tx, topics.host(host.id));
}
