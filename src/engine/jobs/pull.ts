import type { PullPayload } from "../../core/job.ts";
import { open } from "../../core/keys.ts";
import { formatReference, hubReference, parseReference } from "../../core/reference.ts";
import { reportProgress } from "../../db/leases.ts";
import type { RegistryAuth } from "../../image/registry-auth.ts";
import { pullAndRecord } from "../images.ts";
import type { JobHandler } from "../runner.ts";

/** Pulls an image into the project; the result counts what was moved. */
export const pull: JobHandler = async (job, services, signal) => {
  const payload = job.payload as unknown as PullPayload;
  const reference = hubReference(parseReference(payload.reference));
  const { secretKey, connection } = services;
  let reported = 0;
  const { image, ...counts } = await pullAndRecord(services, job.projectId, reference, {
    signal,
    ...(payload.platform === undefined ? {} : { platform: payload.platform }),
    ...(payload.auth === undefined
      ? {}
      : { auth: JSON.parse(open(secretKey, `pull:${job.id}`, payload.auth)) as RegistryAuth }),
    onProgress: (progress) => {
      if (performance.now() - reported < 500) return;
      reported = performance.now();
      void reportProgress(connection.db, job, { ...progress }).catch(() => undefined);
    },
  });
  return { reference: formatReference(reference), digest: image.digest, ...counts };
};
