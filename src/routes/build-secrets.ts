import { z } from "@hono/zod-openapi";
import { readJsonHeader } from "./json-header.ts";

/** What `RUN --mount=type=secret` reads, by id. */
export const BuildSecrets = z
  .record(z.string().regex(/^[\w.:/-]{1,255}$/, "Must be a secret's id"), z.string().max(65_536))
  .refine((record) => Object.keys(record).length <= 100, "At most 100")
  .openapi({
    description: "For `RUN --mount=type=secret`, by id; kept encrypted until the build has ended, and in no image.",
    example: { npm: "//registry.npmjs.org/:_authToken=…" },
  });

/** The header that secrets of an upload come in: its body is the context, and a query would be in logs. */
export const secretsHeader = z.object({
  "berth-build-secrets": z.string().max(16_384).optional().openapi({
    description:
      "Secrets for `RUN --mount=type=secret`: a JSON object, id → value, in base64. With a JSON body they are in it.",
    example: "eyJ0b2tlbiI6ICJzM2NyZXQifQ==",
  }),
});

/** The secrets of the header. @throws BerthError `invalid_request`, without what was in it */
export function readSecretsHeader(header: string | undefined): Record<string, string> {
  return readJsonHeader(BuildSecrets, "Berth-Build-Secrets", "id → value", header);
}
