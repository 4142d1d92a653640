/** Why a run cannot go on, in words for whoever started it. */
import { ConfigError } from "effect/Config"
import * as Schema from "effect/Schema"
import { Unavailable } from "../services/Reason.ts"

export class Refused extends Schema.TaggedError<Refused>("cohort/host/Refused")("Refused", {
  detail: Schema.String
}) {
  override get message(): string {
    return this.detail
  }
}

/** The message of an error, or of the error it wraps where that says more; one line. */
export const describe = (error: unknown): string => {
  if (error instanceof ConfigError) return ofConfig(error).detail
  const reason =
    error instanceof Error && !(error instanceof Unavailable) && error.cause instanceof Error ? error.cause : error
  const message = reason instanceof Error ? reason.message : String(reason)
  return message.trim().replaceAll(/\s*\n\s*/g, " ")
}

/** `COHORT_PORT: expected a whole number from 0 to 65000`. */
export const ofConfig = (error: ConfigError): Refused => {
  const text = describe(error.cause)
  const [, expected, name] = /^(.*?) at \["([^"]+)"\]$/.exec(text) ?? []
  return new Refused({
    detail: name === undefined ? text : `${name}: ${expected!.charAt(0).toLowerCase()}${expected!.slice(1)}`
  })
}
