/**
 * What an instance does: which background work, and whether it answers requests.
 *
 * ```ts
 * yield* EventQueue.subscribe(RunTask, { idle: WorkerMode.serving("async-task:process"), process })
 * ```
 *
 * A mode is a text, as the environment has it (`WORKER_MODE`):
 *
 * | text | requests | background work |
 * | --- | --- | --- |
 * | empty | yes | all |
 * | `!` | yes | none |
 * | `*` | no | all |
 * | `-` | no | none |
 * | `a,b` | no | that of the services `a` and `b` |
 * | `!,a` | yes | that of the service `a` |
 *
 * A service is a key that the code which does its work asks for, such as `async-task:process`.
 *
 * @since 0.2.0
 */
import type * as Effect from "effect/Effect"
import { Instance } from "./Instance.ts"

export {
  /**
   * Reads a mode; fails with `InvalidInput` for the field `workerMode`.
   *
   * @since 0.2.0
   */
  parse,
  /**
   * A mode, read.
   *
   * @since 0.2.0
   */
  type WorkerMode
} from "./internal/workerMode.ts"

/**
 * Whether this instance does the background work of a service: the `idle` gate of its queue.
 *
 * @since 0.2.0
 */
export const serving = (key: string): Effect.Effect<boolean, never, Instance> =>
  Instance.useSync(({ workerMode }) => workerMode.serves(key))

/**
 * Whether this instance answers requests.
 *
 * @since 0.2.0
 */
export const servingRequests: Effect.Effect<boolean, never, Instance> = Instance.useSync(
  ({ workerMode }) => workerMode.requests
)
