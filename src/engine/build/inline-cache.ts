import type { BuildRequest } from "../../core/build-request.ts";
import { BerthError } from "../../core/errors.ts";
import { type InlineCache, writeInlineCache } from "../../image/inline-cache.ts";
import type { CachedBuild } from "./cached-stages.ts";
import type { BuildReport } from "./report.ts";

/**
 * What the image's config has besides, when the build was asked for an image that is its own cache: by its option, or by
 * the build argument that BuildKit knows. That it can't be one is said in the log, and takes nothing from the image.
 */
export function inlineCache(
  { inlineCache: asked, args }: Pick<BuildRequest, "inlineCache" | "args">,
  { results, layers }: Pick<CachedBuild, "results" | "layers">,
  epoch: number | null,
  report: Pick<BuildReport, "line">,
): InlineCache | Record<string, never> {
  if (asked !== true && args["BUILDKIT_INLINE_CACHE"] !== "1") return {};
  try {
    return writeInlineCache(results, layers, epoch);
  } catch (error) {
    if (!(error instanceof BerthError)) throw error;
    report.line(0, "info", `#0 warning: the image is no cache. ${error.message}`);
    return {};
  }
}
