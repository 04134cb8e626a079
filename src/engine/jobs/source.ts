import { BerthError } from "../../core/errors.ts";
import type { GitAuth } from "../../core/git-source.ts";
import { Postponed } from "../../core/job.ts";
import type { SourcePayload } from "../../core/source.ts";
import { recordRead, sourceUrl } from "../../db/source-reads.ts";
import { OutboundPolicy } from "../../image/outbound.ts";
import { readHead } from "../build/git-head.ts";
import type { JobHandler } from "../runner.ts";

/** How long until it is looked again whether a project that has too many open jobs has fewer. */
const fullMs = 30_000;

/**
 * Reads what a ref of a source is now, whatever was told of it, and has it built when that is not the commit that was
 * built last.
 */
export const source: JobHandler = async (job, services, signal) => {
  const { connection, config, sandboxes } = services;
  const { ref, auth: sealed } = job.payload as unknown as SourcePayload;
  const url = await sourceUrl(connection.sql, job.subjectId ?? "");
  if (url === null) throw new BerthError("not_found", "The source is gone.");
  // They are for the host that the source had when the read was asked for, not for another that it has since.
  const auth =
    sealed?.origin === new URL(url).origin
      ? (JSON.parse(await services.openSealed(job, sealed.read)) as GitAuth)
      : null;
  const means = { sandboxes, outbound: new OutboundPolicy(config.outboundAllow) };
  const { commit, branch } = await readHead({ url, ref, auth }, means, signal);
  const known = `${branch ?? "The default branch"} is at ${commit.slice(0, 12)}, which was built last.`;
  const made = await recordRead(connection.sql, job, { url, commit, branch, known }).catch((error: unknown) => {
    // What was told of the ref waits with this job, and says why.
    if (error instanceof BerthError && error.code === "quota_exceeded") throw new Postponed(error, fullMs);
    throw error;
  });
  return { ref, commit, ...made };
};
