import { z } from "@hono/zod-openapi";
import { parsePushDestination, parseRegistryReference } from "../core/reference.ts";
import { parsed } from "./git-schema.ts";
import { readJsonHeader } from "./json-header.ts";

// What a build has to do with registries besides its base images: caches, and users.

/** Kept as it is written. */
export const CacheSource = parsed((text) => {
  parseRegistryReference(text);
  return text;
}).openapi({ type: "string", example: "registry.example.com/team/web:cache" });

/** Kept as it is written. */
export const CacheDestination = parsed((text) => {
  parsePushDestination(text);
  return text;
}).openapi({ type: "string", example: "registry.example.com/team/web:cache" });

/** What the schemas of a build say of them. */
export const descriptions = {
  cacheFrom:
    "Build caches in registries, as `cacheTo` makes them, or images that were built with `inlineCache`, to take finished steps " +
    "from; the first that knows a step counts. One that can't be had is a warning in the log.",
  cacheTo:
    "Registry, repository and tag to publish the build's steps at, for the `cacheFrom` of other builds. When that fails the " +
    "log and the job's `result` say so, and the build succeeds all the same.",
  inlineCache:
    "Have the image itself list the steps that made its layers, so that other builds can name it in `cacheFrom` once it is " +
    "pushed. It has another digest than without.",
};

/** How references begin that have a registry. */
const registryHost = /^(?:localhost|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::\d{1,5})?$/;

/** Users at registries. */
export const RegistryUsers = z
  .record(
    z.string().max(255).regex(registryHost, "Must be a registry: a host name in lower case, and an optional port"),
    z.strictObject({ username: z.string().min(1).max(1_024), password: z.string().min(1).max(65_536) }),
  )
  .refine((record) => Object.keys(record).length <= 20, "At most 20")
  .openapi({
    description: "For base images and caches of these registries; kept encrypted until the build has ended.",
    example: { "registry.example.com": { username: "ada", password: "…" } },
  });

/** The header that an upload's users come in. */
export const registryHeader = z.object({
  "berth-registry-auth": z
    .string()
    .max(12_288)
    .optional()
    .openapi({
      description:
        "Users at registries for base images and caches: a JSON object, registry → `{username, password}`, in base64. With a " +
        "JSON body they are in it, as `registryAuth`.",
      example: "eyJyZWdpc3RyeS5leGFtcGxlLmNvbSI6IHsidXNlcm5hbWUiOiAiYWRhIiwgInBhc3N3b3JkIjogIuKApiJ9fQ==",
    }),
});

/** The users of the header. @throws BerthError `invalid_request`, without what was in it */
export function readRegistryHeader(header: string | undefined): z.infer<typeof RegistryUsers> {
  return readJsonHeader(RegistryUsers, "Berth-Registry-Auth", "registry → {username, password}", header);
}
