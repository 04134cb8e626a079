import type { z } from "@hono/zod-openapi";
import { defaultHostname } from "../core/container.ts";
import type { ContainerRow } from "../db/containers.ts";
import type { Container } from "./container-schema.ts";
import { healthcheckView } from "./health-schema.ts";
import { portView } from "./port-schema.ts";

/** A container as clients see it. `withEnv`: its variables, which may be secrets, too. */
export function containerView(row: ContainerRow, withEnv: boolean): z.infer<typeof Container> {
  const { spec } = row;
  return {
    id: row.id,
    name: row.name,
    image: { reference: row.imageReference, digest: row.imageDigest },
    status: row.status,
    exitCode: row.exitCode,
    reason: row.reason,
    detail: row.detail,
    oomKilled: row.oomKilled,
    restartCount: row.restartCount,
    health: row.health,
    hostId: row.hostId,
    ipAddress: row.ipAddress,
    ports: row.ports.map((port) =>
      portView({ ...port, containerId: row.id, hostId: row.hostId, publicAddress: row.hostAddress }),
    ),
    resources: { cpus: row.cpus, memory: row.memory, pids: row.pids, disk: row.disk },
    command: spec.command ?? null,
    entrypoint: spec.entrypoint ?? null,
    ...(withEnv ? { env: spec.env } : {}),
    workingDirectory: spec.workingDirectory ?? null,
    user: spec.user ?? null,
    hostname: spec.hostname ?? (row.ipAddress === null ? null : defaultHostname(row.ipAddress)),
    tty: spec.tty,
    restartPolicy: spec.restartPolicy,
    stopSignal: spec.stopSignal ?? null,
    stopTimeoutSeconds: spec.stopTimeoutSeconds,
    autoRemove: spec.autoRemove,
    readOnlyRootfs: spec.readOnlyRootfs,
    capabilities: spec.capabilities,
    healthcheck: spec.healthcheck === undefined || spec.healthcheck === null ? null : healthcheckView(spec.healthcheck),
    labels: row.labels,
    createdAt: row.createdAt,
    startedAt: row.startedAt,
    finishedAt: row.finishedAt,
  };
}
