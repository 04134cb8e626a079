import type { ApiAccess } from "../core/api-access.ts";
import { jobSealPurpose } from "../core/job.ts";
import { open } from "../core/keys.ts";
import type { ClaimedJob } from "../db/leases.ts";
import { postInternal } from "./internal-api.ts";

/** Opens what the API sealed (core/keys.ts) into a job's payload. @throws BerthError */
export type OpenSealed = (job: ClaimedJob, sealed: string) => Promise<string>;

/** On a host that holds the secret key. */
export function openWithKey(secretKey: string): OpenSealed {
  return async (job, sealed) => Promise.resolve(open(secretKey, jobSealPurpose(job), sealed));
}

/** On a host that does not: the API opens it for the host that holds the job's lease, and for no other. */
export function openByApi(api: ApiAccess): OpenSealed {
  return async ({ id, epoch }, sealed) => {
    const answer = await postInternal(api, `/internal/jobs/${id}/open`, { epoch, sealed });
    return (answer as { text: string }).text;
  };
}
