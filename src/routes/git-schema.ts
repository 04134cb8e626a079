import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { parseGitRef, parseGitUrl, parseSubdirectory } from "../core/git-source.ts";
import { parseNamedContext, parseTarUrl } from "../core/named-context.ts";

/** Text that a parser of core takes; what it refuses is said at the field. */
export const parsed = <T>(parse: (text: string) => T) =>
  z.string().transform((text, context): T => {
    try {
      return parse(text);
    } catch (error) {
      if (!(error instanceof BerthError)) throw error;
      context.addIssue({ code: "custom", message: error.message.replace(/\.$/, "") });
      return z.NEVER;
    }
  });

export const GitUrl = parsed(parseGitUrl).openapi({
  type: "string",
  description: "An http or https URL without credentials.",
  example: "https://git.example/team/web.git",
});

export const GitRef = parsed(parseGitRef).openapi({ type: "string", example: "main" });

export const Subdirectory = parsed(parseSubdirectory).openapi({
  type: "string",
  description: "Directory that is the context.",
  example: "services/web",
});

export const TarUrl = parsed(parseTarUrl).openapi({
  type: "string",
  description: "An http or https URL without credentials, of a tar, plain or in gzip, zstd, bzip2 or xz.",
  example: "https://example.com/web-1.0.tar.gz",
});

/** Kept as it is written. */
export const ContextAddress = parsed((text) => {
  parseNamedContext(text);
  return text;
}).openapi({ type: "string", example: "docker-image://debian:12-slim" });

/** Credentials for a repository. No control characters: they become a header. */
export const GitAuth = z
  .strictObject({
    username: z
      .string()
      .regex(/^[^:\p{Cc}]{1,255}$/u, "Must be 1 to 255 characters without `:` and control characters"),
    password: z
      .string()
      .regex(/^\P{Cc}{1,4096}$/u, "Must be 1 to 4096 characters without control characters")
      .openapi({ description: "A password or token." }),
  })
  .openapi("GitAuth");
