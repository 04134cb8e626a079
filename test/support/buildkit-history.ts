import { expect } from "vitest";
import type { SavedImage } from "./saved-image.ts";

/** What BuildKit writes since Debian's, as its sources of August 2026 have it; each is one line of the history. */
const since = new Map([
  ["ARG GIVEN=default", "ARG GIVEN=given"],
  ["ARG GLOBAL", "ARG GLOBAL=1.0"],
  ["COPY a.txt dir /srv/", "COPY --chown=app:app a.txt dir /srv/"],
  ["COPY a.txt /opt/tool", "COPY --chmod=750 a.txt /opt/tool"],
  ["ADD a.txt ./", "ADD --chown=1000:1000 a.txt ./"],
  [
    "EXPOSE map[53/udp:{} 8080/tcp:{} 9000/tcp:{} 9001/tcp:{} 9002/tcp:{}]",
    "EXPOSE [53/udp 8080/tcp 9000/tcp 9001/tcp 9002/tcp]",
  ],
  [
    String.raw`HEALTHCHECK &{["CMD-SHELL" "test -e /used"] "1m30s" "1.5s" "0s" '\x02'}`,
    "HEALTHCHECK {Test:[CMD-SHELL test -e /used] Interval:1m30s Timeout:1.5s StartPeriod:0s StartInterval:0s Retries:2}",
  ],
  [
    String.raw`HEALTHCHECK &{["NONE"] "0s" "0s" "0s" '\x00'}`,
    "HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
  ],
]);

/** A line of Debian's BuildKit as it would be now, and without its mark. */
export function asNow(createdBy: string): string {
  const plain = createdBy.replace(/ # buildkit$/, "");
  return since.get(plain) ?? plain;
}

type Layer = Record<string, string>;
export interface HistoryLine {
  createdBy: string;
  /** What the layer has; nothing: no layer, or one of nothing. */
  files: Layer;
}

/** History and layers side by side, without what docs/dockerfile.md lists as deliberate differences. */
export function historyLines({ config, layers }: SavedImage): HistoryLine[] {
  const left = [...layers];
  return (config.history ?? []).map(({ created_by = "", comment, empty_layer }) => {
    expect(comment).toMatch(/^(?:berth|buildkit\.dockerfile\.v0)$/);
    const files = empty_layer === true ? {} : withoutPlaces(left.shift() ?? {});
    return { createdBy: comment === "berth" ? created_by : asNow(created_by), files };
  });
}

/** Without the directories that were made to mount over, and the root's own attributes. */
function withoutPlaces(layer: Layer): Layer {
  const names = Object.keys(layer);
  const isPlace = (name: string) =>
    /^(?:|dev|etc|proc|sys|scratch)$/.test(name) && (name === "" || !names.some((each) => each.startsWith(`${name}/`)));
  return Object.fromEntries(Object.entries(layer).filter(([name]) => !isPlace(name)));
}
