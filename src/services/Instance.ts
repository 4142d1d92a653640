/**
 * One running copy of the application.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Validate from "./internal/validate.ts"
import type { InvalidInput } from "./Reason.ts"
import * as Uuid from "./Uuid.ts"
import { parse, type WorkerMode } from "./internal/workerMode.ts"

/**
 * Who this process (or this simulated process) is.
 *
 * - `app` prefixes every key, channel, queue and lock, so two applications can
 *   share a broker unseen.
 * - `id` is unique per start: a restarted copy is a new instance.
 * - `version` is the application's, for people and for the other instances to see.
 * - `workerMode` is which work it does; see `WorkerMode`.
 *
 * @since 0.1.0
 */
export class Instance extends Context.Service<
  Instance,
  {
    readonly app: string
    readonly id: string
    readonly version: string
    readonly workerMode: WorkerMode
  }
>()("cohort/services/Instance") {}

/**
 * Options of {@link make} and {@link layer}. `app` defaults to `"app"`, `id` to a random UUID, `version` to `"0"`,
 * and `workerMode` to `""`: everything.
 *
 * @since 0.1.0
 */
export interface Options {
  readonly app?: string | undefined
  readonly id?: string | undefined
  readonly version?: string | undefined
  readonly workerMode?: string | undefined
}

/**
 * Makes an instance identity; fails with `InvalidInput` when `app`, `id` or `version` is empty or too long, or
 * `workerMode` is none.
 *
 * @since 0.1.0
 */
export const make = (options: Options = {}): Effect.Effect<Instance["Service"], InvalidInput> =>
  Effect.flatMap(Uuid.Generator, (uuid) => {
    const app = options.app ?? "app"
    const id = options.id ?? uuid()
    const version = options.version ?? "0"
    const invalid = Validate.name("app", app) ?? Validate.name("id", id) ?? Validate.name("version", version)
    if (invalid !== undefined) return Effect.fail(invalid)
    return Effect.map(Effect.fromResult(parse(options.workerMode ?? "")), (workerMode) => ({
      app,
      id,
      version,
      workerMode
    }))
  })

/**
 * Provides {@link Instance}.
 *
 * @since 0.1.0
 */
export const layer = (options?: Options): Layer.Layer<Instance, InvalidInput> => Layer.effect(Instance, make(options))
