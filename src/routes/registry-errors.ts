import { BerthError, type ErrorCode } from "../core/errors.ts";

/** Codes of the distribution specification v1.1 ("Error Codes"); for what is wrong otherwise it has none but `UNSUPPORTED`. */
const codes: Partial<Record<ErrorCode, string>> = {
  unauthorized: "UNAUTHORIZED",
  forbidden: "DENIED",
  not_found: "NAME_UNKNOWN",
  too_many_requests: "TOOMANYREQUESTS",
  invalid_reference: "NAME_INVALID",
  invalid_image: "MANIFEST_INVALID",
  image_not_found: "MANIFEST_INVALID",
  digest_mismatch: "DIGEST_INVALID",
  body_too_large: "SIZE_INVALID",
};

/** An error whose code of the specification does not follow from Berth's. */
class RegistryError extends BerthError {
  readonly kind: string;

  constructor(kind: string, code: ErrorCode, message: string) {
    super(code, message);
    this.kind = kind;
  }
}

/** Something that is missing. `kind`: the specification's code for it. */
export const unknown = (kind: string, message: string): BerthError => new RegistryError(kind, "not_found", message);

/** An upload that can't go on. */
export const badUpload = (message: string): BerthError =>
  new RegistryError("BLOB_UPLOAD_INVALID", "range_not_satisfiable", message);

/** An error as registries answer it. */
export function registryProblem(error: BerthError): { errors: { code: string; message: string }[] } {
  const code = error instanceof RegistryError ? error.kind : (codes[error.code] ?? "UNSUPPORTED");
  return { errors: [{ code, message: error.message }] };
}
