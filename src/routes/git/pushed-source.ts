import { BerthError } from "../../core/errors.ts";
import { newId } from "../../core/ids.ts";
import { seal } from "../../core/keys.ts";
import { newWebhookSecret } from "../../core/webhook-signature.ts";
import { appendEvent } from "../../db/events.ts";
import { lock, transact, violation } from "../../db/scope.ts";
import { countSources, findSource, insertSource, type SourceRow } from "../../db/sources.ts";
import { SourceBuildOptions } from "../build-schema.ts";
import { Deploy, deployTemplate } from "../container-template.ts";
import type { Request, Services } from "../context.ts";
import { buildOf, maxSources } from "../sources.ts";

/**
 * The source that a first push makes: it builds the default branch and deploys what the image exposes, or port 8080, to the
 * next free port.
 * @throws BerthError `quota_exceeded`
 */
export async function createPushedSource(services: Services, c: Request, name: string): Promise<SourceRow | null> {
  const { sql, secretKey } = services;
  const { scope } = c.var;
  const { projectId } = scope;
  const id = newId("source");
  try {
    await transact(sql, scope, async (tx) => {
      await lock(tx, `sources:${projectId}`);
      if ((await countSources(tx, projectId)) >= maxSources) {
        throw new BerthError("quota_exceeded", `A project has at most ${String(maxSources)} sources.`);
      }
      await insertSource(tx, {
        id,
        projectId,
        name,
        provider: "berth",
        url: null,
        branches: [],
        subdirectory: null,
        build: buildOf(c, name, SourceBuildOptions.parse({})),
        deploy: deployTemplate(Deploy.parse({ publishAll: true })),
        secretSealed: seal(secretKey, `secret:${id}`, newWebhookSecret()),
        authSealed: null,
      });
      const data = { name, provider: "berth", url: null };
      await appendEvent(tx, { projectId, type: "source.created", subjectId: id, data });
    });
  } catch (error) {
    // Another push has made it meanwhile.
    if (violation(error) !== "sources_project_id_name_key") throw error;
  }
  return findSource(sql, scope, name);
}
