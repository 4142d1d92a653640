/**
 * Where tasks are kept.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import { identity } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type { StoreError } from "../StoreError.ts"
import { isEnded, type Task, type TaskStatus } from "./Task.ts"

/**
 * The store that every instance shares.
 *
 * @since 0.1.0
 */
export class TaskStore extends Context.Service<
  TaskStore,
  {
    /**
     * Runs changes as one where the store has transactions (SQL): all are kept, or none. Others run them one by one.
     * Inside a transaction of the caller's, they are kept when that is.
     */
    readonly transaction: <A, E, R>(changes: Effect.Effect<A, E, R>) => Effect.Effect<A, E | StoreError, R>
    readonly insert: (task: Task) => Effect.Effect<void, StoreError>
    readonly get: (id: string) => Effect.Effect<Option.Option<Task>, StoreError>
    /** Newest first. */
    readonly list: (filter?: {
      readonly status?: TaskStatus | undefined
      readonly limit?: number | undefined
    }) => Effect.Effect<ReadonlyArray<Task>, StoreError>
    /**
     * Changes a task, in one step, if it is in one of the statuses (and, if given, has had
     * so many attempts: each run is known by its number); returns it as changed. Whoever
     * comes too late gets `None`: two instances never both win.
     */
    readonly update: (
      id: string,
      from: ReadonlyArray<TaskStatus>,
      change: Partial<Omit<Task, "id">>,
      attempts?: number | undefined
    ) => Effect.Effect<Option.Option<Task>, StoreError>
    /** Forgets tasks that ended before a time; returns how many. */
    readonly removeEndedBefore: (time: DateTime.Utc) => Effect.Effect<number, StoreError>
  }
>()("cohort/plugins/async-task-manager/TaskStore") {}

/**
 * In the memory of this process; give the instances of a cluster one such layer.
 *
 * @since 0.1.0
 */
export const layerMemory: Layer.Layer<TaskStore> = Layer.sync(TaskStore, () => {
  const tasks = new Map<string, Task>()
  return TaskStore.of({
    transaction: identity,
    insert: (task) =>
      Effect.sync(() => {
        tasks.set(task.id, task)
      }),
    get: (id) => Effect.sync(() => Option.fromUndefinedOr(tasks.get(id))),
    list: (filter = {}) =>
      Effect.sync(() =>
        [...tasks.values()]
          .reverse()
          .filter((task) => filter.status === undefined || task.status === filter.status)
          .slice(0, filter.limit ?? 100)
      ),
    update: (id, from, change, attempts) =>
      Effect.sync(() => {
        const task = tasks.get(id)
        if (task === undefined || !from.includes(task.status)) return Option.none()
        if (attempts !== undefined && task.attempts !== attempts) return Option.none()
        const changed = { ...task, ...change }
        tasks.set(id, changed)
        return Option.some(changed)
      }),
    removeEndedBefore: (time) =>
      Effect.sync(() => {
        const old = [...tasks.values()].filter(
          ({ endedAt, status }) =>
            isEnded(status) && endedAt !== null && endedAt.epochMilliseconds < time.epochMilliseconds
        )
        for (const { id } of old) tasks.delete(id)
        return old.length
      })
  })
})
