import { transact, violation } from "../../db/scope.ts";
import { findSource, type SourceRow } from "../../db/sources.ts";
import { SourceBuildOptions } from "../build-schema.ts";
import { Deploy, deployTemplate } from "../container-template.ts";
import type { Request, Services } from "../context.ts";
import { addSource, buildOf } from "../sources.ts";

/**
 * The source that a first push makes: it builds the default branch and deploys what the image exposes, or port 8080, to the
 * next free port.
 * @throws BerthError `quota_exceeded`
 */
export async function createPushedSource(services: Services, c: Request, name: string): Promise<SourceRow | null> {
  const { sql } = services;
  const { scope } = c.var;
  const fields = {
    name,
    url: null,
    branches: [],
    subdirectory: null,
    build: buildOf(c, name, SourceBuildOptions.parse({})),
    deploy: deployTemplate(Deploy.parse({ publishAll: true })),
    auth: null,
    registryAuth: {},
    secrets: {},
  };
  try {
    await transact(sql, scope, (tx) => addSource(tx, services, scope.projectId, "berth", fields));
  } catch (error) {
    // Another push has made it meanwhile.
    if (violation(error) !== "sources_project_id_name_key") throw error;
  }
  return findSource(sql, scope, name);
}
