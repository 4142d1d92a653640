/**
 * One running copy of the application.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Validate from "./internal/validate.ts"
import type { InvalidInput } from "./Reason.ts"

/**
 * Who this process (or this simulated process) is.
 *
 * - `app` prefixes every key, channel, queue and lock, so two applications can
 *   share a broker unseen.
 * - `id` is unique per start: a restarted copy is a new instance.
 *
 * @since 0.1.0
 */
export class Instance extends Context.Service<
  Instance,
  {
    readonly app: string
    readonly id: string
  }
>()("cohort/services/Instance") {}

/**
 * Options of {@link make} and {@link layer}. `app` defaults to `"app"`, `id` to a random UUID.
 *
 * @since 0.1.0
 */
export interface Options {
  readonly app?: string | undefined
  readonly id?: string | undefined
}

/**
 * Makes an instance identity; fails with `InvalidInput` when `app` or `id` is empty or too long.
 *
 * @since 0.1.0
 */
export const make = (options: Options = {}): Effect.Effect<Instance["Service"], InvalidInput> =>
  Effect.suspend(() => {
    const app = options.app ?? "app"
    const id = options.id ?? SecureRandom.uuidV4Unsafe()
    const invalid = Validate.name("app", app) ?? Validate.name("id", id)
    return invalid === undefined ? Effect.succeed({ app, id }) : Effect.fail(invalid)
  })

/**
 * Provides {@link Instance}.
 *
 * @since 0.1.0
 */
export const layer = (options?: Options): Layer.Layer<Instance, InvalidInput> => Layer.effect(Instance, make(options))
