import { z } from "@hono/zod-openapi";
import { deliveryStatuses, sourceProviders } from "../core/source.ts";
import type { DeliveryRow } from "../db/deliveries.ts";
import type { SourceRow } from "../db/sources.ts";
import { RegistryUsers } from "./build-registries.ts";
import { SourceBuildOptions } from "./build-schema.ts";
import { BuildSecrets } from "./build-secrets.ts";
import { Name } from "./container-schema.ts";
import { Deploy, deployView } from "./container-template.ts";
import { GitAuth, GitRef, GitUrl, Subdirectory } from "./git-schema.ts";

const Branches = z
  .array(GitRef.refine((name) => !name.startsWith("refs/"), "Must be a branch's name, without `refs/heads/`"))
  .max(20)
  .openapi({ description: "The branches that build; none: the repository's default branch.", example: ["main"] });

const auth = GitAuth.openapi({ description: "For a private repository; kept encrypted and never shown." });

const registryAuth = RegistryUsers.openapi({
  description: "For base images and caches of its builds at these registries; kept encrypted and never shown.",
});

const secrets = BuildSecrets.openapi({
  description:
    "For `RUN --mount=type=secret` of its builds, by id; kept encrypted and never shown. Who may push to it can have a build " +
    "read them.",
});

export const SourceCreate = z
  .strictObject({
    name: Name.openapi({ example: "web" }),
    provider: z
      .enum(sourceProviders)
      .openapi({ description: "How its webhooks are signed; `berth`: it is pushed to Berth itself and has no `url`." }),
    url: GitUrl.optional(),
    branches: Branches.default([]),
    subdirectory: Subdirectory.optional(),
    auth: auth.optional(),
    registryAuth: registryAuth.default({}),
    secrets: secrets.default({}),
    build: SourceBuildOptions.prefault({}).openapi({ description: "Without `tags` the image is named as the source." }),
    deploy: Deploy.optional().openapi({ description: "The container that each successful build becomes." }),
  })
  .refine(({ provider, url }) => (provider === "berth") === (url === undefined), {
    path: ["url"],
    message: "Must be given, but not with the provider `berth`",
  })
  .refine(({ provider, auth }) => provider !== "berth" || auth === undefined, {
    path: ["auth"],
    message: "Must not be given with the provider `berth`, which reads no other repository",
  })
  .openapi("SourceCreate", {
    example: {
      name: "web",
      provider: "github",
      url: "https://github.com/team/web.git",
      deploy: { ports: [{ containerPort: 8080, hostPort: 8000 }] },
    },
  });

export const SourceUpdate = z
  .strictObject({
    name: Name.optional(),
    url: GitUrl.optional(),
    branches: Branches.optional(),
    subdirectory: Subdirectory.nullable().optional(),
    auth: auth.nullable().optional(),
    registryAuth: registryAuth.nullable().optional(),
    secrets: secrets.nullable().optional(),
    build: SourceBuildOptions.optional(),
    deploy: Deploy.nullable().optional(),
  })
  .openapi("SourceUpdate", { example: { branches: ["main", "staging"] } });

export const Source = z
  .object({
    id: z.string().openapi({ example: "src_0q3xr5kkp8wmz2v9d1hc" }),
    name: z.string().openapi({ example: "web" }),
    provider: z.enum(sourceProviders),
    url: z.string().nullable(),
    branches: z.array(z.string()),
    subdirectory: z.string().nullable(),
    hasAuth: z.boolean().openapi({ description: "Whether it has credentials for its repository." }),
    hasRegistryAuth: z.boolean().openapi({ description: "Whether its builds have users at registries." }),
    hasSecrets: z.boolean().openapi({ description: "Whether its builds have secrets." }),
    build: SourceBuildOptions,
    deploy: Deploy.nullable(),
    heads: z
      .array(z.object({ ref: z.string(), commit: z.string(), buildId: z.string().nullable() }))
      .openapi({ description: "What was built last of each ref; `HEAD` is the default branch." }),
    deploymentId: z.string().nullable().openapi({
      description: "The deployment that its ports lead to: the last that succeeded.",
      example: "dep_0q3xr5kkp8wmz2v9d1hc",
    }),
    webhook: z
      .object({ url: z.string().openapi({ example: "https://berth.example/v1/webhooks/src_0q3xr5kkp8wmz2v9d1hc" }) })
      .nullable(),
    createdAt: z.iso.datetime(),
  })
  .openapi("Source");

/** A source as it is shown once. */
export const NewSource = Source.extend({
  webhook: z
    .object({ url: z.string(), secret: z.string().openapi({ description: "Shown this once.", example: "whsec_…" }) })
    .nullable(),
}).openapi("NewSource");

/** A source as clients see it. `withEnv`: what its containers are given, which may be secrets, too. */
export function sourceView(row: SourceRow, webhookUrl: string, withEnv: boolean): z.infer<typeof Source> {
  const { authSealed, seals, deploy, ...rest } = row;
  return {
    ...rest,
    build: { contexts: {}, cacheFrom: [], inlineCache: false, compression: "gzip", ...row.build },
    hasAuth: authSealed !== null,
    hasRegistryAuth: seals.registryAuth !== null,
    hasSecrets: seals.secrets !== null,
    deploy: deploy === null ? null : deployView(deploy, withEnv),
    webhook: row.provider === "berth" ? null : { url: webhookUrl },
  };
}

export const Delivery = z
  .object({
    id: z.string().openapi({ example: "dlv_0q3xr5kkp8wmz2v9d1hc" }),
    sourceId: z.string().openapi({ example: "src_0q3xr5kkp8wmz2v9d1hc" }),
    event: z.string().openapi({ description: "As the provider calls it.", example: "push" }),
    ref: z.string().nullable().openapi({ description: "What is read again.", example: "refs/heads/main" }),
    status: z.enum(deliveryStatuses),
    detail: z.string().nullable().openapi({ description: "Why it was ignored, or what failed." }),
    buildId: z.string().nullable(),
    receivedAt: z.iso.datetime(),
  })
  .openapi("Delivery");

/** A delivery as clients see it. */
export function deliveryView({ createdAt, ...row }: DeliveryRow): z.infer<typeof Delivery> {
  return { ...row, receivedAt: createdAt };
}
