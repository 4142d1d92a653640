/** What the plugins' stores on Redis have in common. */
import * as Effect from "effect/Effect"
import { StoreError } from "../../plugins/StoreError.ts"

/** Of all keys of an app's stores: in one hash slot, so that scripts may use several. */
export const prefix = (app: string): string => `cohort-host:{${app}}:`

export const failing =
  (store: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, StoreError, R> =>
    Effect.mapError(effect, (cause) => new StoreError({ store, cause }))
