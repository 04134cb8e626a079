import { BerthError } from "./errors.ts";
import { formatReference, hubReference, type ImageReference, parseReference } from "./reference.ts";

/** What a project knows of a reference: whether the repository is its own, and its images under both meanings. */
export interface KnownImage {
  own: boolean;
  ownDigest: string | null;
  hubDigest: string | null;
}

/** An image to run: the reference that it is known by, and its digest when the project has it; null: to be pulled. */
export interface ImageChoice {
  reference: string;
  digest: string | null;
}

/**
 * The reference as the project means it: `<project>/web` is its own `web`.
 * @throws BerthError `invalid_reference`
 */
export function projectReference(text: string, projectName: string): ImageReference {
  const reference = parseReference(text);
  const prefix = `${projectName}/`;
  return reference.registry === null && reference.repository.startsWith(prefix)
    ? { ...reference, repository: reference.repository.slice(prefix.length) }
    : reference;
}

/**
 * Chooses what a container runs. The project's own repository is never looked for elsewhere.
 * @throws BerthError `image_not_found` when it can't be had without a pull that is not wanted.
 */
export function chooseImage(
  reference: ImageReference,
  known: KnownImage,
  pull: "missing" | "always" | "never",
): ImageChoice {
  if (known.own) {
    const name = formatReference(reference);
    if (known.ownDigest === null) throw new BerthError("image_not_found", `The project has no image ${name}.`);
    return { reference: name, digest: known.ownDigest };
  }
  const name = formatReference(hubReference(reference));
  if (known.hubDigest !== null && pull !== "always") return { reference: name, digest: known.hubDigest };
  if (pull === "never") {
    throw new BerthError("image_not_found", `The project has no image ${name}, and it is not to be pulled.`);
  }
  return { reference: name, digest: null };
}
