/**
 * Tasks and their types.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

/**
 * - `pending`: waits for its first run, or for a retry.
 * - `failed`: has used up its attempts, and is a dead letter; it can be redriven.
 *
 * @since 0.1.0
 */
export const TaskStatus = Schema.Literals(["pending", "running", "succeeded", "failed", "canceled"])

/**
 * @since 0.1.0
 */
export type TaskStatus = typeof TaskStatus.Type

/**
 * How far a task is: `done` of `total` in whatever unit the task counts.
 *
 * @since 0.1.0
 */
export const Progress = Schema.Struct({ done: Schema.Number, total: Schema.optionalKey(Schema.Number) })

/**
 * @since 0.1.0
 */
export type Progress = typeof Progress.Type

/**
 * A task as stored. `params` and `result` are JSON, encoded by the task's type.
 *
 * @since 0.1.0
 */
export const Task = Schema.Struct({
  id: Schema.String,
  type: Schema.String,
  params: Schema.Json,
  status: TaskStatus,
  progress: Progress,
  /** Runs so far, the current one included. */
  attempts: Schema.Int,
  /** The instance that ran it last. */
  instance: Schema.NullOr(Schema.String),
  result: Schema.NullOr(Schema.Json),
  error: Schema.NullOr(Schema.String),
  createdAt: Schema.DateTimeUtcFromString,
  startedAt: Schema.NullOr(Schema.DateTimeUtcFromString),
  endedAt: Schema.NullOr(Schema.DateTimeUtcFromString)
})

/**
 * @since 0.1.0
 */
export type Task = typeof Task.Type

/**
 * Whether a status is the end of a task.
 *
 * @since 0.1.0
 */
export const isEnded = (status: TaskStatus): boolean => status !== "pending" && status !== "running"

/**
 * A kind of task: what it takes, what it returns, and how it is tried.
 *
 * @since 0.1.0
 */
export interface TaskType<P, A> {
  readonly name: string
  readonly params: Schema.Codec<P, any>
  readonly result: Schema.Codec<A, any>
  readonly maxRetries: number
  readonly timeout: Duration.Duration
}

/**
 * Declares a task type; the plugin that owns it registers its handler with
 * `Tasks.register`. `maxRetries` defaults to 0, `timeout` of one attempt to 10 minutes.
 *
 * @since 0.1.0
 */
export const type = <P, PI, A, AI>(
  name: string,
  options: {
    readonly params: Schema.Codec<P, PI>
    readonly result: Schema.Codec<A, AI>
    readonly maxRetries?: number | undefined
    readonly timeout?: Duration.Input | undefined
  }
): TaskType<P, A> => ({
  name,
  params: options.params,
  result: options.result,
  maxRetries: options.maxRetries ?? 0,
  timeout: Duration.fromInputUnsafe(options.timeout ?? "10 minutes")
})

/**
 * What a handler is told about its run.
 *
 * @since 0.1.0
 */
export interface TaskRun {
  readonly id: string
  /** 1-based. */
  readonly attempt: number
  /** Notes how far the task is; ends the run when the task was canceled meanwhile. */
  readonly progress: (progress: Progress) => Effect.Effect<void>
}
