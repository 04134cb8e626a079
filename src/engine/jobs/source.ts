import { BerthError } from "../../core/errors.ts";
import type { GitAuth, GitSource } from "../../core/git-source.ts";
import type { SourcePayload } from "../../core/source.ts";
import { readingSource, recordRead } from "../../db/source-reads.ts";
import { OutboundPolicy } from "../../image/outbound.ts";
import { type GitHead, readHead } from "../build/git-head.ts";
import type { JobHandler } from "../runner.ts";

/**
 * Reads what a ref of a source is now, whatever was told of it, and has it built when that is not the commit that was
 * built last.
 */
export const source: JobHandler = async (job, services, signal) => {
  const { connection, config, sandboxes } = services;
  const { ref, auth: sealed } = job.payload as unknown as SourcePayload;
  const id = job.subjectId ?? "";
  const found = await readingSource(connection.sql, id);
  if (found === null || found.url === null) throw new BerthError("not_found", "The source is gone.");
  const { url, build, subdirectory } = found;
  const auth = sealed === undefined ? null : (JSON.parse(await services.openSealed(job, sealed.read)) as GitAuth);
  const means = { sandboxes, outbound: new OutboundPolicy(config.outboundAllow) };
  const head = await readHead({ url, ref, auth }, means, signal);
  const context: GitSource & { commit: string } = {
    kind: "git",
    url,
    ref: head.branch,
    subdirectory,
    commit: head.commit,
    digest: null,
    sizeBytes: null,
  };
  const made = await recordRead(connection.sql, job, { id, build }, context, nothingNew(head));
  if (made === null) throw new BerthError("unavailable", "The lease is lost.");
  return { ref, commit: head.commit, ...made };
};

const nothingNew = ({ branch, commit }: GitHead) =>
  `${branch ?? "The default branch"} is at ${commit.slice(0, 12)}, which was built last.`;
