import type { PlanOptions } from "../../src/build/options.ts";

const platform = { os: "linux", architecture: "amd64" };

/** What a build that asks for nothing in particular is planned with. */
export const planOptions = (more: Partial<PlanOptions> = {}): PlanOptions => ({
  args: {},
  target: undefined,
  platform,
  buildPlatform: platform,
  labels: {},
  contexts: {},
  contextTime: null,
  ...more,
});
