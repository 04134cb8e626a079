import { z } from "@hono/zod-openapi";
import { addableCapabilities, defaultCapabilities } from "../core/capability.ts";
import { containerStatuses } from "../core/container.ts";
import { healthStates } from "../core/health.ts";
import { namePattern, nameRule } from "../core/names.ts";
import { signalNumber } from "../core/signals.ts";
import { Healthcheck } from "./health-schema.ts";
import { Port, PortCreate } from "./port-schema.ts";

const gib = 2 ** 30;
const mib = 2 ** 20;

/** What a container gets that says nothing of it. */
export const defaultResources = { cpus: 1, memory: 512 * mib, pids: 512, disk: gib } as const;

/** Text of a process's argument, variable or path: anything but NUL, which no system call takes. */
const argument = z.string().max(32_768);
const commandLine = z.array(argument).min(1).max(1_000);

export const Labels = z
  .record(
    z.string().regex(/^[\w./-]{1,255}$/, "Must be 1 to 255 letters, digits, `.`, `_`, `/` and `-`"),
    z.string().max(1_024),
  )
  .refine((labels) => Object.keys(labels).length <= 100, "At most 100 labels")
  .openapi({ example: { tier: "web" } });

export const Environment = z
  .record(z.string().regex(/^[A-Za-z_][\w.-]{0,254}$/, "Must be a variable's name"), argument)
  .refine((env) => Object.keys(env).length <= 1_000, "At most 1,000 variables")
  .openapi({ example: { PORT: "8080" } });

export const Name = z.string().regex(namePattern, `Must be ${nameRule}`).openapi({ example: "web-1" });

/** A user, or user and group, by name or number, as in an image's `USER`. */
export const User = z
  .string()
  .regex(/^[\w.-]{1,64}(?::[\w.-]{1,64})?$/, "Must be USER or USER:GROUP")
  .openapi({ example: "1000:1000" });

export const AbsolutePath = z
  .string()
  .max(4_096)
  .regex(/^\//, "Must be an absolute path")
  .refine((path) => !path.split("/").includes(".."), "Must not have `..`")
  .openapi({ example: "/app" });

export const Signal = z
  .string()
  .max(20)
  .refine((text) => signalNumber(text) !== null, "Is not a signal")
  .openapi({ example: "SIGTERM" });

export const Resources = z
  .strictObject({
    cpus: z.number().min(0.01).max(512).default(defaultResources.cpus).openapi({ description: "Cores." }),
    memory: z
      .int()
      .min(4 * mib)
      .max(4_096 * gib)
      .default(defaultResources.memory)
      .openapi({ description: "Bytes of memory; swap is not given in addition." }),
    pids: z.int().min(2).max(32_768).default(defaultResources.pids).openapi({ description: "Processes and threads." }),
    disk: z
      .int()
      .min(16 * mib)
      .max(16_384 * gib)
      .default(defaultResources.disk)
      .openapi({ description: "Bytes of the writable layer." }),
  })
  .openapi("Resources", { example: { cpus: 0.5, memory: 128 * mib, pids: 100, disk: 256 * mib } });

export const RestartPolicy = z
  .strictObject({
    name: z.enum(["no", "on-failure", "always", "unless-stopped"]),
    maxAttempts: z
      .int()
      .min(0)
      .max(1_000_000)
      .default(0)
      .openapi({ description: "Only of `on-failure`; 0: no limit." }),
  })
  .refine((policy) => policy.maxAttempts === 0 || policy.name === "on-failure", {
    path: ["maxAttempts"],
    message: "Belongs to `on-failure` only",
  })
  .openapi("RestartPolicy");

const droppable = [...defaultCapabilities, "ALL"] as const;
const capability = <T extends readonly string[]>(known: T) =>
  z.preprocess(
    (name) => (typeof name === "string" ? name.toUpperCase().replace(/^CAP_/, "") : name),
    z.enum(known as unknown as [T[number], ...T[number][]]),
  );

export const ContainerCreate = z
  .strictObject({
    image: z.string().min(1).max(512).openapi({
      description: "The project's own `web:1`, Docker Hub's `debian:12`, `registry.example/name:tag`, or a digest.",
      example: "web:1",
    }),
    name: Name.optional().openapi({ description: "Unique in the project; made up when not given." }),
    command: commandLine.optional().openapi({ description: "In place of the image's CMD.", example: ["sleep", "60"] }),
    entrypoint: z
      .array(argument)
      .max(1_000)
      .optional()
      .openapi({ description: "In place of the image's; `[]`: none." }),
    env: Environment.default({}),
    workingDirectory: AbsolutePath.optional(),
    user: User.optional(),
    hostname: Name.optional().openapi({
      description: "By default it goes with the address, such as `ip-10-88-0-7`; kept as long as the container.",
    }),
    tty: z.boolean().default(false),
    openStdin: z.boolean().default(false),
    ports: z
      .array(PortCreate.omit({ containerId: true }))
      .max(100)
      .default([]),
    publishAll: z.boolean().default(false).openapi({ description: "Publish each port that the image exposes." }),
    resources: Resources.prefault({}),
    restartPolicy: RestartPolicy.prefault({ name: "no" }),
    labels: Labels.default({}),
    stopSignal: Signal.optional(),
    stopTimeoutSeconds: z
      .int()
      .min(0)
      .max(3_600)
      .default(10)
      .openapi({ description: "From the stop signal to SIGKILL." }),
    autoRemove: z.boolean().default(false).openapi({ description: "Remove it when it has ended." }),
    readOnlyRootfs: z.boolean().default(false),
    capabilities: z
      .strictObject({
        add: z.array(capability(addableCapabilities)).max(20).default([]),
        drop: z.array(capability(droppable)).max(20).default([]),
      })
      .prefault({})
      .openapi({ description: 'Beside those that every container has; `drop: ["ALL"]` leaves only what is added.' }),
    healthcheck: Healthcheck.nullish().openapi({
      description: "By default the image's; null: none, whatever it says.",
    }),
    pull: z.enum(["missing", "always", "never"]).default("missing"),
    placement: z
      .strictObject({
        host: z.string().min(1).max(253).optional().openapi({ description: "Id or name of the one host." }),
        hostLabels: Labels.optional().openapi({ description: "Labels that the host must have." }),
      })
      .prefault({})
      .openapi({ description: "By default any host with room." }),
    start: z.boolean().default(true),
  })
  .openapi("ContainerCreate", {
    example: { image: "web:1", name: "web-1", ports: [{ containerPort: 8080, hostPort: 8000 }] },
  });

export const ContainerUpdate = z
  .strictObject({
    name: Name.optional(),
    labels: Labels.optional(),
    restartPolicy: RestartPolicy.optional(),
    resources: z
      .strictObject({
        cpus: Resources.shape.cpus.unwrap().optional(),
        memory: Resources.shape.memory.unwrap().optional(),
        pids: Resources.shape.pids.unwrap().optional(),
      })
      .optional()
      .openapi({ description: "Of a running container they change at once. The disk's size is fixed." }),
  })
  .openapi("ContainerUpdate", { example: { resources: { memory: 256 * mib } } });

export const Container = z
  .object({
    id: z.string().openapi({ example: "ctr_0q3xr5kkp8wmz2v9d1hc" }),
    name: z.string().openapi({ example: "web-1" }),
    image: z.object({
      reference: z.string().openapi({ example: "web:1" }),
      digest: z.string().nullable().openapi({ description: "null until the image was pulled." }),
    }),
    status: z.enum(containerStatuses),
    exitCode: z.int().nullable().openapi({ description: "null while it runs, and when nobody saw how it ended." }),
    reason: z.string().nullable().openapi({ description: "A code, when it failed or ended unusually.", example: null }),
    detail: z.string().nullable().openapi({ description: "The reason in words.", example: null }),
    oomKilled: z.boolean(),
    restartCount: z.int(),
    health: z.enum(healthStates).nullable().openapi({
      description: "null: it has no health check, or does not run. An unhealthy one goes on; `detail` says why.",
    }),
    hostId: z.string().openapi({ example: "hst_0q3xr5kkp8wmz2v9d1hc" }),
    ipAddress: z.string().nullable().openapi({ example: "10.88.0.2" }),
    ports: z.array(Port),
    resources: z.object({ cpus: z.number(), memory: z.int(), pids: z.int(), disk: z.int() }),
    command: z.array(z.string()).nullable(),
    entrypoint: z.array(z.string()).nullable(),
    env: z
      .record(z.string(), z.string())
      .optional()
      .openapi({ description: "What was given at creation; not shown to viewers." }),
    workingDirectory: z.string().nullable(),
    user: z.string().nullable(),
    hostname: z.string().nullable().openapi({ description: "null: not known before the first start." }),
    tty: z.boolean(),
    restartPolicy: z.object({ name: z.enum(["no", "on-failure", "always", "unless-stopped"]), maxAttempts: z.int() }),
    stopSignal: z.string().nullable(),
    stopTimeoutSeconds: z.int(),
    autoRemove: z.boolean(),
    readOnlyRootfs: z.boolean(),
    capabilities: z.object({ add: z.array(z.string()), drop: z.array(z.string()) }),
    healthcheck: Healthcheck.nullable().openapi({ description: "null: the image's, or none." }),
    labels: z.record(z.string(), z.string()),
    createdAt: z.iso.datetime(),
    startedAt: z.iso.datetime().nullable(),
    finishedAt: z.iso.datetime().nullable(),
  })
  .openapi("Container");
