import { z } from "@hono/zod-openapi";
import type { DeployTemplate } from "../core/deploy.ts";
import type { PublishRequest } from "../core/port.ts";
import { ContainerCreate, RestartPolicy } from "./container-schema.ts";
import { healthcheckView, healthOf } from "./health-schema.ts";
import { checkPorts, publishRequest } from "./port-schema.ts";

/** The container that a source's builds become: as `POST /v1/containers` takes one, but for image and name. */
export const Deploy = ContainerCreate.omit({
  image: true,
  name: true,
  start: true,
  pull: true,
  tty: true,
  openStdin: true,
  autoRemove: true,
})
  .extend({
    restartPolicy: RestartPolicy.prefault({ name: "unless-stopped" }),
    publishAll: z.boolean().default(false).openapi({
      description: "Publish each port that the image exposes; if it exposes none and `ports` has none, 8080.",
    }),
  })
  .openapi("Deploy", { example: { ports: [{ containerPort: 8080, hostPort: 8000 }], env: { TIER: "web" } } });

/** What a container is asked, but for what only a single one has. */
export function templateSpec(asked: z.infer<typeof Deploy>, ports: readonly PublishRequest[]): DeployTemplate["spec"] {
  const placement = present(asked.placement);
  const { healthcheck } = asked;
  return present({
    command: asked.command,
    entrypoint: asked.entrypoint,
    env: asked.env,
    workingDirectory: asked.workingDirectory,
    user: asked.user,
    hostname: asked.hostname,
    publishAll: asked.publishAll,
    ports: [...ports],
    restartPolicy: asked.restartPolicy,
    stopSignal: asked.stopSignal,
    stopTimeoutSeconds: asked.stopTimeoutSeconds,
    readOnlyRootfs: asked.readOnlyRootfs,
    capabilities: asked.capabilities,
    placement: Object.keys(placement).length === 0 ? undefined : placement,
    healthcheck: healthcheck === undefined || healthcheck === null ? healthcheck : healthOf(healthcheck),
  });
}

/** A template as it is kept. `at`: where it is in the body. @throws BerthError `invalid_request` for a port given twice */
export function deployTemplate(asked: z.infer<typeof Deploy>, at = "/deploy"): DeployTemplate {
  const ports = asked.ports.map(publishRequest);
  checkPorts(ports, `${at}/ports`);
  return { ...asked.resources, labels: asked.labels, spec: templateSpec(asked, ports) };
}

/** A template as clients see it. `withEnv`: its variables, which may be secrets, too. */
export function deployView(template: DeployTemplate, withEnv: boolean): z.infer<typeof Deploy> {
  const { spec, labels, cpus, memory, pids, disk } = template;
  const { healthcheck, placement, ...rest } = spec;
  return {
    ...rest,
    env: withEnv ? spec.env : {},
    capabilities: spec.capabilities as z.infer<typeof Deploy>["capabilities"],
    labels,
    resources: { cpus, memory, pids, disk },
    placement: placement ?? {},
    ...(healthcheck === undefined ? {} : { healthcheck: healthcheck === null ? null : healthcheckView(healthcheck) }),
  };
}

/** The same without the fields that are undefined: absent and undefined are different to exact optional types. */
export function present<T extends object>(value: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(value).filter(([, field]) => field !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>;
  };
}
