import type { z } from "@hono/zod-openapi";
import type { ContainerSpec } from "../core/container.ts";
import { BerthError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { chooseImage, type ImageChoice, projectReference } from "../core/image-choice.ts";
import { isOverfull, place } from "../core/placement.ts";
import { exposedPorts, type PublishRequest } from "../core/port.ts";
import { checkQuota } from "../core/quota.ts";
import { digestPattern, type ImageReference } from "../core/reference.ts";
import { findContainer, insertContainer } from "../db/containers.ts";
import { appendEvent } from "../db/events.ts";
import { type HostRow, listHosts } from "../db/hosts.ts";
import { findImage, knownImage } from "../db/images.ts";
import { insertPort, newPort, PortRefused, portError, portReserved } from "../db/ports.ts";
import { readQuota, readUsage } from "../db/projects.ts";
import type { Scope } from "../db/scope.ts";
import { lock, type Tx, together, violation, wake } from "../db/scope.ts";
import { topics } from "../db/wakeups.ts";
import type { ContainerCreate } from "./container-schema.ts";
import { present, templateSpec } from "./container-template.ts";
import { containerView } from "./container-view.ts";
import type { Request, Services } from "./context.ts";
import { once } from "./idempotency.ts";
import { checkPorts, publishRequest } from "./port-schema.ts";

type Asked = z.infer<typeof ContainerCreate>;

/** Another transaction has filled the host in the meantime: what is read next shows it. */
class HostFull extends Error {}

/**
 * Creates a container in one transaction: quota, image, placement, container, ports, event and wake-up. Answers what the
 * client is shown.
 * @throws BerthError for every reason that rows can tell; what only the host can know makes a `failed` container.
 */
export async function createContainer(services: Services, c: Request, asked: Asked) {
  const reference = requestedImage(asked.image, c.var.project.name);
  const ports = asked.ports.map(publishRequest);
  checkPorts(ports);
  // Hosts that had room and could not give a port.
  const refused = new Map<string, BerthError>();
  for (;;) {
    try {
      return await once(services, c, (tx) => attempt(tx, c.var.scope, asked, ports, reference, refused));
    } catch (error) {
      if (error instanceof PortRefused) {
        refused.set(error.port.hostId, await portError(services.sql, c.var.scope, error));
      } else if (violation(error) === "containers_project_id_name_key") {
        throw new BerthError("name_taken", `The project has a container named ${String(asked.name)}.`);
      } else if (!(error instanceof HostFull)) {
        throw error;
      }
    }
  }
}

async function attempt(
  tx: Tx,
  scope: Scope,
  asked: Asked,
  given: readonly PublishRequest[],
  reference: ImageReference,
  refused: ReadonlyMap<string, BerthError>,
) {
  const { projectId } = scope;
  // Sent together: the lock is first, so that what follows sees all that other holders of it have committed.
  const [, quota, usage, known, hosts] = await together([
    lock(tx, `quota:${projectId}`),
    readQuota(tx, scope),
    readUsage(tx, scope),
    knownImage(tx, scope, reference),
    listHosts(tx),
  ]);
  if (quota === null) throw new BerthError("not_found", "There is no such project.");
  const image = chooseImage(reference, known, asked.pull);
  const ports = asked.publishAll ? [...given, ...(await unpublishedPorts(tx, scope, image, given))] : given;
  checkQuota(quota, usage, { containers: 1, ...asked.resources, ports: ports.length });
  const unfit = new Map([...reservedBy(hosts, ports), ...refused]);
  const host = place(hosts, asked.resources, present(asked.placement), unfit);

  const id = newId("container");
  const name = asked.name ?? inventName(reference);
  const published = [...ports].sort((a, b) => Number(a.hostPort === undefined) - Number(b.hostPort === undefined));
  const [, , , , , after, row] = await together([
    lock(tx, `host:${host.id}`),
    insertContainer(tx, {
      id,
      projectId,
      hostId: host.id,
      name,
      spec: specOf(asked, given),
      labels: asked.labels,
      imageReference: image.reference,
      imageDigest: image.digest,
      ...asked.resources,
      start: asked.start,
    }),
    together(published.map((port) => insertPort(tx, newPort(port, { projectId, containerId: id, hostId: host.id })))),
    appendEvent(tx, {
      projectId,
      type: "container.created",
      subjectId: id,
      data: { name, image: image.reference, hostId: host.id },
    }),
    wake(tx, topics.host(host.id)),
    listHosts(tx, host.id),
    findContainer(tx, scope, id),
  ]);
  if (after.some(isOverfull)) throw new HostFull();
  if (row === null) throw new Error("the container that was inserted can't be read");
  return containerView(row, true);
}

/** The hosts that reserve a port that is asked, each with the error that says so. */
function reservedBy(hosts: readonly HostRow[], ports: readonly PublishRequest[]): Map<string, BerthError> {
  const asked = ports.flatMap(({ hostPort }) => (hostPort === undefined ? [] : [hostPort]));
  return new Map(
    hosts.flatMap((host) => {
      const hostPort = asked.find((port) => host.reservedPorts.includes(port));
      return hostPort === undefined ? [] : [[host.id, portReserved(hostPort)]];
    }),
  );
}

/** A digest alone, or a reference. */
function requestedImage(text: string, projectName: string): ImageReference {
  return digestPattern.test(text)
    ? { registry: null, repository: "image", tag: null, digest: text }
    : projectReference(text, projectName);
}

/** The ports that the image exposes and that are not published already. */
async function unpublishedPorts(
  tx: Tx,
  scope: Scope,
  image: ImageChoice,
  given: readonly PublishRequest[],
): Promise<PublishRequest[]> {
  const known = image.digest === null ? null : await findImage(tx, scope, image.digest);
  if (known === null) {
    throw new BerthError(
      "invalid_state",
      `publishAll needs an image that the project has; pull ${image.reference} first.`,
    );
  }
  return exposedPorts(known.config, given);
}

/** A name for a container that was given none: what it runs, and a random end. */
function inventName(reference: ImageReference): string {
  const base = (reference.repository.split("/").at(-1) ?? "").replaceAll(/[^a-z0-9]+/g, "-").slice(0, 40);
  return `${base}-${newId("container").slice(-6)}`;
}

/** What is kept of the request; name, labels and resources have columns of their own. */
function specOf(asked: Asked, ports: readonly PublishRequest[]): ContainerSpec {
  const { image, tty, openStdin, autoRemove, pull } = asked;
  return { ...templateSpec(asked, ports), image, tty, openStdin, autoRemove, pull };
}
