import { z } from "@hono/zod-openapi";
import { type BuildRequest, layerCompressions } from "../core/build-request.ts";
import { jobStatuses } from "../core/job.ts";
import type { SourceBuild } from "../core/source.ts";
import type { BuildRow } from "../db/builds.ts";
import { CacheDestination, CacheSource, descriptions as cachesSaid, RegistryUsers } from "./build-registries.ts";
import { BuildSecrets } from "./build-secrets.ts";
import { ContextAddress, type GitAuth } from "./git-schema.ts";
import { ShownError } from "./jobs.ts";
import { count, flag, repeated } from "./parameters.ts";
import { invalidRequest } from "./problem.ts";
import { RemoteSource, remoteSource } from "./remote-source.ts";

const gib = 2 ** 30;

/** The media types of an uploaded context. How it is compressed is read from its bytes, not from here. */
const archiveTypes = [
  "application/x-tar",
  "application/tar",
  "application/gzip",
  "application/x-gzip",
  "application/tar+gzip",
  "application/zstd",
  "application/octet-stream",
] as const;
type ArchiveBodies = Record<(typeof archiveTypes)[number], { schema: z.ZodString }>;
export const archiveBodies = Object.fromEntries(
  archiveTypes.map((type) => [type, { schema: z.string().openapi({ format: "binary" }) }]),
) as ArchiveBodies;

export const Build = z
  .object({
    id: z.string().openapi({ example: "bld_0q3xr5kkp8wmz2v9d1hc" }),
    jobId: z.string().openapi({ example: "job_0q3xr5kkp8wmz2v9d1hc" }),
    sourceId: z
      .string()
      .nullable()
      .openapi({ description: "Whose build it is, when a source began it.", example: null }),
    status: z.enum(jobStatuses),
    tags: z.array(z.string()).openapi({ example: ["web:1"] }),
    image: z.object({ digest: z.string() }).nullable(),
    source: z.discriminatedUnion("kind", [
      z.object({ kind: z.literal("archive"), digest: z.string(), sizeBytes: z.int() }),
      z.object({
        kind: z.literal("git"),
        url: z.string().openapi({ example: "https://git.example/team/web.git" }),
        ref: z.string().nullable().openapi({ description: "null: the default branch." }),
        subdirectory: z.string().nullable(),
        commit: z.string().nullable().openapi({
          description: "What the ref was when it was fetched; null until then.",
          example: "5f3c1f0a4d2be0c6a4f7c3a9b1d0e8f7a6c5b4d3",
        }),
        digest: z.string().nullable().openapi({ description: "Of the tar that the commit became." }),
        sizeBytes: z.int().nullable(),
      }),
      z.object({
        kind: z.literal("tar"),
        url: z.string().openapi({ example: "https://example.com/web-1.0.tar.gz" }),
        checksum: z.string().nullable(),
        digest: z.string().nullable().openapi({ description: "Of what was downloaded; null until then." }),
        sizeBytes: z.int().nullable(),
      }),
    ]),
    dockerfile: z.string().openapi({ example: "Dockerfile" }),
    target: z.string().nullable(),
    args: z.record(z.string(), z.string()),
    labels: z.record(z.string(), z.string()),
    contexts: z.record(z.string(), z.string()).openapi({ example: { base: "docker-image://debian:12-slim" } }),
    cacheFrom: z.array(z.string()).openapi({ example: ["registry.example.com/team/web:cache"] }),
    cacheTo: z.string().nullable().openapi({ example: null }),
    inlineCache: z.boolean(),
    compression: z.enum(layerCompressions),
    warnings: z.array(
      z
        .object({
          check: z.string().openapi({ description: "The name of a build check.", example: "JSONArgsRecommended" }),
          message: z.string(),
          line: z.int(),
        })
        .openapi("BuildWarning"),
    ),
    steps: z.array(
      z
        .object({
          index: z.int(),
          stage: z.string(),
          instruction: z.string().openapi({ example: "RUN make" }),
          line: z.int(),
          status: z.enum(["pending", "running", "succeeded", "failed", "cancelled"]),
          cached: z.boolean(),
          durationMs: z.int().nullable(),
        })
        .openapi("BuildStep"),
    ),
    error: ShownError.nullable(),
    createdAt: z.iso.datetime(),
    startedAt: z.iso.datetime().nullable(),
    finishedAt: z.iso.datetime().nullable(),
  })
  .openapi("Build");

/** A path within the context. */
const innerPath = z
  .string()
  .min(1)
  .max(4_096)
  .refine((path) => !path.startsWith("/") && !path.split("/").includes(".."), "Must be a path within the context");

/** `NAME=VALUE`, several times, as an object. */
const pairs = (name: RegExp, what: string, description: string) =>
  repeated(
    z
      .string()
      .max(65_536)
      .refine((text) => name.test(text.split("=", 1)[0] ?? "") && text.includes("="), `Must be ${what}=VALUE`),
  )
    .transform((texts) =>
      Object.fromEntries(texts.map((text) => [text.slice(0, text.indexOf("=")), text.slice(text.indexOf("=") + 1)])),
    )
    .openapi({ type: "array", items: { type: "string" }, description });

const stage = z
  .string()
  .regex(/^[\w.-]{1,128}$/, "Must be a stage's name or number")
  .optional();
const imageName = z.string().min(1).max(512);
const argumentName = /^[A-Za-z_]\w{0,254}$/;
const contextName = /^[A-Za-z0-9][\w.:@/-]{0,254}$/;
const labelKey = /^[\w./-]{1,255}$/;
const platform = z
  .string()
  .regex(/^[a-z0-9]+\/[a-z0-9_]+(?:\/[a-z0-9.]+)?$/, "Must be OS/ARCHITECTURE")
  .optional()
  .openapi({ example: "linux/amd64" });
const compression = z.enum(layerCompressions).default("gzip").openapi({
  description:
    "Of the layers that it makes. zstd makes smaller ones in half the time; Docker Engine runs them from 23.0 on.",
});
const dockerfile = innerPath.default("Dockerfile").openapi({ description: "Its path within the context." });

const descriptions = {
  tags: "Names for the image.",
  contexts:
    "Named contexts: what stands in for an image or stage of that name in FROM, --from and from=. " +
    "`docker-image://IMAGE`, `https://HOST/REPOSITORY.git#REF:DIRECTORY`, or the URL of a tar.",
  noCache: "Run every step, also those that were run before.",
  pull: "Ask the registry again for base images that are there.",
  ...cachesSaid,
};
const bounds = { cpus: [0.01, 512], memory: [16 * 2 ** 20, 4_096 * gib], timeoutSeconds: [1, 86_400] } as const;
const usual = { cpus: 2, memory: 2 * gib, timeoutSeconds: 1_800 };

/** The options of an upload, in the query. */
export const ArchiveOptions = z.strictObject({
  tag: repeated(imageName).openapi({
    type: "array",
    items: { type: "string" },
    description: descriptions.tags,
    example: ["web:1"],
  }),
  dockerfile,
  target: stage,
  arg: pairs(argumentName, "NAME", "Build arguments, `NAME=VALUE`. The image's history shows them."),
  label: pairs(labelKey, "KEY", "Labels of the image, `KEY=VALUE`."),
  context: pairs(contextName, "NAME", `${descriptions.contexts} Each \`NAME=VALUE\`.`).pipe(
    z.record(z.string(), ContextAddress),
  ),
  platform,
  noCache: flag(false).openapi({ description: descriptions.noCache }),
  pull: flag(false).openapi({ description: descriptions.pull }),
  cacheFrom: repeated(CacheSource)
    .refine((list) => list.length <= 10, "At most 10")
    .openapi({ type: "array", items: { type: "string" }, description: descriptions.cacheFrom }),
  cacheTo: CacheDestination.optional().openapi({ description: descriptions.cacheTo }),
  inlineCache: flag(false).openapi({ description: descriptions.inlineCache }),
  compression,
  cpus: z.coerce
    .number()
    .min(bounds.cpus[0])
    .max(bounds.cpus[1])
    .default(usual.cpus)
    .openapi({ type: "number", description: "Cores." }),
  memory: count(...bounds.memory)
    .optional()
    .openapi({ type: "integer", default: usual.memory, description: "Bytes." }),
  timeoutSeconds: count(...bounds.timeoutSeconds)
    .optional()
    .openapi({ type: "integer", default: usual.timeoutSeconds }),
});

const values = (name: RegExp, rule: string, maxLength: number) =>
  z
    .record(z.string().regex(name, rule), z.string().max(maxLength))
    .refine((record) => Object.keys(record).length <= 100, "At most 100")
    .default({});

const within = <S extends z.ZodNumber>(number: S, [min, max]: readonly [number, number]) => number.min(min).max(max);

/** The options of a build in a body. */
const options = {
  dockerfile,
  target: stage,
  args: values(argumentName, "Must be an argument's name", 65_536).openapi({
    description: "Build arguments. The image's history shows them.",
  }),
  tags: z
    .array(imageName)
    .max(100)
    .default([])
    .openapi({ description: descriptions.tags, example: ["web:1"] }),
  labels: values(labelKey, "Must be 1 to 255 letters, digits, `.`, `_`, `/` and `-`", 65_536).openapi({
    description: "Labels of the image.",
  }),
  contexts: z
    .record(z.string().regex(contextName, "Must be a stage's or an image's name"), ContextAddress)
    .refine((record) => Object.keys(record).length <= 100, "At most 100")
    .default({})
    .openapi({ description: descriptions.contexts, example: { base: "docker-image://debian:12-slim" } }),
  platform,
  noCache: z.boolean().default(false).openapi({ description: descriptions.noCache }),
  pull: z.boolean().default(false).openapi({ description: descriptions.pull }),
  cacheFrom: z.array(CacheSource).max(10).default([]).openapi({ description: descriptions.cacheFrom }),
  cacheTo: CacheDestination.optional().openapi({ description: descriptions.cacheTo }),
  inlineCache: z.boolean().default(false).openapi({ description: descriptions.inlineCache }),
  compression,
  limits: z
    .strictObject({
      cpus: within(z.number(), bounds.cpus).default(usual.cpus).openapi({ description: "Cores." }),
      memory: within(z.int(), bounds.memory).default(usual.memory).openapi({ description: "Bytes." }),
      timeoutSeconds: within(z.int(), bounds.timeoutSeconds).default(usual.timeoutSeconds),
    })
    .default(usual),
};

/** A build of what is elsewhere: the source and all options. */
export const RemoteBuild = z
  .strictObject({
    source: RemoteSource,
    secrets: BuildSecrets.default({}),
    registryAuth: RegistryUsers.default({}),
    ...options,
  })
  .openapi("RemoteBuild");

/** What the builds of a source are asked. */
export const SourceBuildOptions = z.strictObject(options).openapi("SourceBuild");

/** What an upload's query asks for; the source is its body. */
export function archiveOptions(query: z.infer<typeof ArchiveOptions>): Omit<BuildRequest, "source"> {
  const { tag, arg, label, context, target, platform, cacheTo, cpus, memory, timeoutSeconds, ...rest } = query;
  return {
    ...rest,
    ...given({ target, platform, cacheTo }),
    tags: tag,
    args: arg,
    labels: label,
    contexts: context,
    limits: { cpus, memory: memory ?? usual.memory, timeoutSeconds: timeoutSeconds ?? usual.timeoutSeconds },
  };
}

/** What a body asks for, and what of it is secret. @throws BerthError `invalid_request` when the query has options too. */
export function remoteRequest(
  body: z.infer<typeof RemoteBuild>,
  query: Record<string, string>,
): {
  request: BuildRequest;
  auth: z.infer<typeof GitAuth> | undefined;
  secrets: Record<string, string>;
  registryAuth: z.infer<typeof RegistryUsers>;
} {
  const [name] = Object.keys(query);
  if (name !== undefined) {
    throw invalidRequest([{ pointer: `query/${name}`, detail: "With a JSON body the options are in the body." }]);
  }
  const { source, secrets, registryAuth, ...asked } = body;
  const request = { ...sourceBuild(asked), source: remoteSource(source) };
  return { request, auth: source.git?.auth, secrets, registryAuth };
}

/** What a source's builds are asked. */
export function sourceBuild({ target, platform, cacheTo, ...rest }: z.infer<typeof SourceBuildOptions>): SourceBuild {
  return { ...rest, ...given({ target, platform, cacheTo }) };
}

/** The fields that have a value. */
function given<T extends Record<string, string | undefined>>(options: T) {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]?: string;
  };
}

/** A build as clients see it. */
export function buildView(row: BuildRow): z.infer<typeof Build> {
  const { request, imageDigest, ...rest } = row;
  return {
    ...rest,
    image: imageDigest === null ? null : { digest: imageDigest },
    source: request.source,
    dockerfile: request.dockerfile,
    target: request.target ?? null,
    args: request.args,
    labels: request.labels,
    contexts: request.contexts ?? {},
    cacheFrom: request.cacheFrom ?? [],
    cacheTo: request.cacheTo ?? null,
    inlineCache: request.inlineCache ?? false,
    compression: request.compression ?? "gzip",
  };
}
