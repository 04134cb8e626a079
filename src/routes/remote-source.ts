import { z } from "@hono/zod-openapi";
import type { TarSource } from "../core/build-request.ts";
import type { GitSource } from "../core/git-source.ts";
import { GitAuth, GitRef, GitUrl, Subdirectory, TarUrl } from "./git-schema.ts";

const git = z.strictObject({
  url: GitUrl,
  ref: GitRef.optional().openapi({
    description: "Branch, tag, full ref name or commit id; by default the repository's default branch.",
  }),
  subdirectory: Subdirectory.optional(),
  auth: GitAuth.optional().openapi({ description: "For this build only; kept encrypted until it has ended." }),
});

const tar = z.strictObject({
  url: TarUrl,
  checksum: z
    .string()
    .regex(/^sha256:[0-9a-f]{64}$/, "Must be sha256: and 64 hexadecimal digits")
    .optional()
    .openapi({ description: "What it must have." }),
});

/** A context that is elsewhere: a git repository, or a tar behind a URL. */
export const RemoteSource = z
  .strictObject({ git: git.optional(), tar: tar.optional() })
  .refine((source) => (source.git === undefined) !== (source.tar === undefined), {
    message: "Must be git or tar",
    path: ["git"],
  });

/** The source as it is kept: what it is found to be is not known yet. */
export function remoteSource(source: z.infer<typeof RemoteSource>): GitSource | TarSource {
  const unknown = { digest: null, sizeBytes: null };
  if (source.git !== undefined) {
    const { url, ref = null, subdirectory = null } = source.git;
    return { kind: "git", url, ref, subdirectory, commit: null, ...unknown };
  }
  if (source.tar === undefined) throw new Error("a source that the schema refuses");
  return { kind: "tar", url: source.tar.url, checksum: source.tar.checksum ?? null, ...unknown };
}
