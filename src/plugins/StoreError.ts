/**
 * What a plugin's own store fails with.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * A store could not be read or written. The memory stores never fail; a database does.
 *
 * @since 0.1.0
 */
export class StoreError extends Schema.TaggedError<StoreError>("cohort/plugins/StoreError")("StoreError", {
  store: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `the ${this.store} store failed`
  }
}
