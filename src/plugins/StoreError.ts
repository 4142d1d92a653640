/**
 * What a plugin's own store fails with.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
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

/**
 * Makes every failure of an effect a {@link StoreError} of the store.
 *
 * @since 0.2.0
 */
export const failing =
  (store: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, StoreError, R> =>
    Effect.mapError(effect, (cause) => new StoreError({ store, cause }))
