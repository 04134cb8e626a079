import { BerthError } from "./errors.ts";

/**
 * An image reference, parsed once. `registry` null: the project's own or, when the project has no such repository,
 * Docker Hub's: who asks decides (`hubReference`).
 */
export interface ImageReference {
  registry: string | null;
  /** Path without registry, such as `web` or `library/debian`. */
  repository: string;
  tag: string | null;
  /** `sha256:` and 64 hex digits. */
  digest: string | null;
}

const component = /^[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*$/;
const tagPattern = /^\w[\w.-]{0,127}$/;
export const digestPattern = /^sha256:[0-9a-f]{64}$/;
const registryPattern = /^(?:localhost|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::\d{1,5})?$/i;

/**
 * Parses `[registry/]path[:tag][@digest]` (the distribution reference grammar). A first component that has `.` or `:`,
 * or is `localhost`, is a registry. Without tag and digest the tag is `latest`.
 * @throws BerthError `invalid_reference`, naming the part that is wrong.
 */
export function parseReference(text: string): ImageReference {
  const fail = (what: string): never => {
    throw new BerthError(
      "invalid_reference",
      `${JSON.stringify(text.slice(0, 300))} is not an image reference: ${what}.`,
    );
  };
  if (text.length === 0 || text.length > 512) fail("it must have 1 to 512 characters");
  let rest = text;
  let digest: string | null = null;
  const at = rest.indexOf("@");
  if (at >= 0) {
    digest = rest.slice(at + 1);
    rest = rest.slice(0, at);
    if (!digestPattern.test(digest)) fail("the digest must be sha256: and 64 hex digits");
  }
  let tag: string | null = null;
  const colon = rest.lastIndexOf(":");
  if (colon > rest.lastIndexOf("/")) {
    tag = rest.slice(colon + 1);
    rest = rest.slice(0, colon);
    if (!tagPattern.test(tag)) fail("a tag has up to 128 letters, digits, `_`, `.` and `-`");
  }
  let registry: string | null = null;
  const slash = rest.indexOf("/");
  if (slash > 0) {
    const first = rest.slice(0, slash);
    if (/[.:]/.test(first) || first === "localhost") {
      if (!registryPattern.test(first)) fail("the registry must be a host name and an optional port");
      registry = first.toLowerCase();
      rest = rest.slice(slash + 1);
    }
  }
  if (rest.length === 0 || rest.length > 255 || !rest.split("/").every((part) => component.test(part))) {
    fail("a repository is made of lower-case letters and digits, separated by `.`, `_`, `-` or `/`");
  }
  if (registry === "index.docker.io" || registry === "registry-1.docker.io") registry = "docker.io";
  if (registry === "docker.io" && !rest.includes("/")) rest = `library/${rest}`;
  return { registry, repository: rest, tag: tag ?? (digest === null ? "latest" : null), digest };
}

/** What a reference without a registry means when the project has no such repository: Docker Hub's. */
export function hubReference(reference: ImageReference): ImageReference & { registry: string } {
  if (reference.registry !== null) return { ...reference, registry: reference.registry };
  const repository = reference.repository.includes("/") ? reference.repository : `library/${reference.repository}`;
  return { ...reference, registry: "docker.io", repository };
}

/** Something at a registry. @throws BerthError `invalid_reference` when it names none. */
export function parseRegistryReference(text: string): ImageReference & { registry: string } {
  const reference = parseReference(text);
  if (reference.registry !== null) return { ...reference, registry: reference.registry };
  const detail = `${JSON.stringify(text)} must name its registry: REGISTRY/REPOSITORY:TAG.`;
  throw new BerthError("invalid_reference", detail);
}

/** Where an image can be pushed to: a tag of a registry's repository. */
export type PushDestination = ImageReference & { registry: string; tag: string };

/** @throws BerthError `invalid_reference` when it names no registry, or a digest. */
export function parsePushDestination(text: string): PushDestination {
  const reference = parseReference(text);
  const { registry, tag, digest } = reference;
  if (registry === null || tag === null || digest !== null) {
    throw new BerthError(
      "invalid_reference",
      `${JSON.stringify(text)} can't be pushed to: it must be REGISTRY/REPOSITORY:TAG, without a digest.`,
    );
  }
  return { ...reference, registry, tag };
}

/** The name under which `tags.repository` keeps it: `web`, or `docker.io/library/debian`. */
export function repositoryName(reference: ImageReference): string {
  return reference.registry === null ? reference.repository : `${reference.registry}/${reference.repository}`;
}

/** The reference as text, tag and digest included. */
export function formatReference(reference: ImageReference): string {
  const tag = reference.tag === null ? "" : `:${reference.tag}`;
  const digest = reference.digest === null ? "" : `@${reference.digest}`;
  return `${repositoryName(reference)}${tag}${digest}`;
}
