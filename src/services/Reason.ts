/**
 * The reasons that the errors of several primitives share.
 *
 * Every primitive has one tagged error (`CacheError`, `LockError`, …) with a
 * tagged `reason`; use `Effect.catchReason` to handle one of them.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * The caller passed something that cannot be accepted. Nothing was written.
 *
 * `field` names the option or argument (`"ttl"`, `"key"`, `"payload"`), `detail`
 * says what is wrong with it.
 *
 * @since 0.1.0
 */
export class InvalidInput extends Schema.TaggedError<InvalidInput>("cohort/InvalidInput")("InvalidInput", {
  field: Schema.String,
  detail: Schema.String
}) {
  override get message(): string {
    return `${this.field}: ${this.detail}`
  }
}

/**
 * The backend could not be reached, or did not answer within its bound
 * (5 seconds unless configured otherwise). Whether a write took effect is unknown.
 *
 * @since 0.1.0
 */
export class Unavailable extends Schema.TaggedError<Unavailable>("cohort/Unavailable")("Unavailable", {
  backend: Schema.String,
  detail: Schema.String,
  cause: Schema.optional(Schema.Defect())
}) {
  override get message(): string {
    return `${this.backend} is unavailable: ${this.detail}`
  }
}
