import type { NamedContext } from "../core/named-context.ts";
import type { Platform } from "../core/platform.ts";

/** What a build was asked for, as far as the plan depends on it. */
export interface PlanOptions {
  args: Readonly<Record<string, string>>;
  /** A stage's name or number; undefined: the last stage. */
  target: string | undefined;
  /** Of the result. */
  platform: Platform;
  /** Of the machine that builds. */
  buildPlatform: Platform;
  /** When the context was last changed, in seconds since 1970; null: that says nothing. */
  contextTime: number | null;
  /** By name, in lower case: what stands in for an image or stage of that name. */
  contexts: Readonly<Record<string, NamedContext>>;
  /** Added to the result's labels. */
  labels: Readonly<Record<string, string>>;
}
