import { type ClaimedJob, reportProgress } from "../../db/leases.ts";
import type { RegistryAuth } from "../../image/registry-auth.ts";
import type { TransferProgress } from "../../image/transfer.ts";
import type { Services } from "../services.ts";

const reportEveryMs = 500;

/** The credentials that came with a pull or push; null: none did. */
export async function credentials(job: ClaimedJob, services: Services): Promise<RegistryAuth | null> {
  const { auth } = job.payload as { auth?: string };
  if (auth === undefined) return null;
  return JSON.parse(await services.openSealed(job, auth)) as RegistryAuth;
}

/** Shows a transfer's progress on the job, now and then; it is no loss when a report is. */
export function progressReport(job: ClaimedJob, services: Services): (progress: TransferProgress) => void {
  let reported = 0;
  return (progress) => {
    if (performance.now() - reported < reportEveryMs) return;
    reported = performance.now();
    void reportProgress(services.connection.sql, job, { ...progress }).catch(() => undefined);
  };
}
