/**
 * Long-running work, started on any instance, run on whichever has room, and
 * cancelled from anywhere.
 *
 * A task is a row in the {@link TaskStore}; the queue carries its id. The row says
 * what is true, the queue who works on it:
 *
 * - A run first moves the row to `running`, and only then starts the handler.
 * - Cancelling moves the row to `canceled`, then tells every instance; the one that
 *   runs the task interrupts its handler. Should that word be lost, the handler's next
 *   progress report ends it.
 * - A task that fails for good is a dead letter of {@link RunTask}; {@link Tasks.redrive}
 *   gives it all its attempts again.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberMap from "effect/FiberMap"
import { identity } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as EventQueue from "../../services/EventQueue.ts"
import * as AfterCommit from "../../services/internal/afterCommit.ts"
import { Instance } from "../../services/Instance.ts"
import * as Job from "../../services/Job.ts"
import * as Plugin from "../../services/Plugin.ts"
import * as PubSub from "../../services/PubSub.ts"
import * as Singleton from "../../services/Singleton.ts"
import { SyncOutbox } from "../../services/SyncOutbox.ts"
import * as Uuid from "../../services/Uuid.ts"
import * as WorkerMode from "../../services/WorkerMode.ts"
import type { StoreError } from "../StoreError.ts"
import { isEnded, type Task, type TaskRun, type TaskStatus, type TaskType } from "./Task.ts"
import { TaskStore } from "./TaskStore.ts"

const names = Plugin.namespace("async-task-manager")

/**
 * Tells every instance to stop a task that it may be running.
 *
 * @since 0.1.0
 */
export const CancelTask = names.topic("task.cancel", Schema.Struct({ id: Schema.String }))

/**
 * Runs a task; the job's id is the task's.
 *
 * @since 0.1.0
 */
export const RunTask = names.job("task", Schema.Struct({ id: Schema.String }))

/**
 * There is no task with this id.
 *
 * @since 0.1.0
 */
export class TaskNotFound extends Schema.TaggedError<TaskNotFound>("cohort/plugins/TaskNotFound")(
  "TaskNotFound",
  { id: Schema.String },
  { httpApiStatus: 404 }
) {
  override get message(): string {
    return `there is no task "${this.id}"`
  }
}

/**
 * The task's type has no handler here, or its parameters are not what the type takes.
 *
 * @since 0.1.0
 */
export class InvalidTask extends Schema.TaggedError<InvalidTask>("cohort/plugins/InvalidTask")(
  "InvalidTask",
  { type: Schema.String, detail: Schema.String },
  { httpApiStatus: 400 }
) {
  override get message(): string {
    return `${this.type}: ${this.detail}`
  }
}

/**
 * How this instance takes part in running tasks.
 *
 * - `concurrency`: how many tasks run here at a time. Default 3.
 * - `idle`: asked before a task is taken; while `false`, other instances get them. Default: always `true`.
 * - `retention`: how long ended tasks are kept. Default 30 days.
 *
 * @since 0.1.0
 */
export const TaskWorker = Context.Reference<{
  readonly concurrency: number
  readonly idle: Effect.Effect<boolean>
  readonly retention: Duration.Input
}>("cohort/plugins/async-task-manager/TaskWorker", {
  defaultValue: () => ({ concurrency: 3, idle: Effect.succeed(true), retention: "30 days" })
})

type Handler = (params: unknown, run: TaskRun) => Effect.Effect<unknown, unknown>

interface Registered {
  readonly type: TaskType<any, any>
  readonly handler: Handler
}

/**
 * @since 0.1.0
 */
export class Tasks extends Context.Service<
  Tasks,
  {
    /** Makes this instance able to run a type of task, until the scope closes. Register in `beforeLoad`: tasks run from `load` on. */
    readonly register: <P, A, E, R>(
      type: TaskType<P, A>,
      handler: (params: P, run: TaskRun) => Effect.Effect<A, E, R>
    ) => Effect.Effect<void, InvalidTask, R | Scope.Scope>
    /** Stores a task and hands it to the queue, in a transaction of the caller's when that commits; returns its id. */
    readonly start: <P, A>(
      type: TaskType<P, A>,
      params: P
    ) => Effect.Effect<string, InvalidTask | StoreError | EventQueue.EventQueueError>
    /** Like `start`, for a type known by name only and parameters not yet checked. */
    readonly startUnknown: (
      type: string,
      params: unknown
    ) => Effect.Effect<string, InvalidTask | StoreError | EventQueue.EventQueueError>
    readonly get: (id: string) => Effect.Effect<Task, TaskNotFound | StoreError>
    /** The result of a task that succeeded; `None` until then. */
    readonly result: <P, A>(
      type: TaskType<P, A>,
      id: string
    ) => Effect.Effect<Option.Option<A>, TaskNotFound | StoreError | Schema.SchemaError>
    readonly list: TaskStore["Service"]["list"]
    /** Cancels a task wherever it is; `false` when it had ended already. */
    readonly cancel: (id: string) => Effect.Effect<boolean, TaskNotFound | StoreError | PubSub.PubSubError>
    /**
     * Runs failed tasks again, with all their attempts; returns how many. In an open transaction they run after its
     * commit, and never after a rollback.
     */
    readonly redrive: (
      ids: ReadonlyArray<string> | "all"
    ) => Effect.Effect<number, StoreError | EventQueue.EventQueueError>
    /** The tasks that run on this instance right now. */
    readonly running: Effect.Effect<ReadonlyArray<string>>
  }
>()("cohort/plugins/async-task-manager/Tasks") {}

/** What the plugin needs of {@link Tasks} and nobody else does. */
class Runner extends Context.Service<
  Runner,
  {
    readonly run: (id: string, info: EventQueue.JobInfo) => Effect.Effect<void, unknown>
    readonly stopLocal: (id: string) => Effect.Effect<void>
    /** Forgets old tasks, and mends those whose row and job have come apart. */
    readonly housekeeping: Effect.Effect<void, unknown>
  }
>()("cohort/plugins/async-task-manager/Runner") {}

/**
 * Provides {@link Tasks}.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<Tasks | Runner, never, TaskStore | EventQueue.EventQueue | PubSub.PubSub | Instance> =
  Layer.effectContext(
    Effect.gen(function* () {
      const store = yield* TaskStore
      const queue = yield* EventQueue.EventQueue
      const pubsub = yield* PubSub.PubSub
      const instance = yield* Instance
      const uuid = yield* Uuid.Generator
      const afterCommit = yield* AfterCommit.make((reason) => new EventQueue.EventQueueError({ reason }))
      // With an outbox the job is a row as well. Without, it is sent after the task is stored, and a failure is told.
      const atomically = Option.isSome(yield* Effect.serviceOption(SyncOutbox)) ? store.transaction : identity
      const types = new Map<string, Registered>()
      const running = yield* FiberMap.make<string, unknown, unknown>()

      const get = (id: string) =>
        Effect.flatMap(
          store.get(id),
          Option.match({ onNone: () => Effect.fail(new TaskNotFound({ id })), onSome: Effect.succeed })
        )

      const enqueue = (task: Task, type: TaskType<any, any>) =>
        queue.publish(
          RunTask,
          { id: task.id },
          {
            id: task.id,
            maxRetries: type.maxRetries,
            // A row that is rolled back has never been, nor has its job.
            afterCommit: true,
            // The task's own timeout comes first and knows what to note; the job's is for a handler that hangs.
            timeout: Duration.sum(type.timeout, Duration.seconds(30))
          }
        )

      const startEncoded = Effect.fnUntraced(function* (type: TaskType<any, any>, params: Schema.Json) {
        const task: Task = {
          id: uuid(),
          type: type.name,
          params,
          status: "pending",
          progress: { done: 0 },
          attempts: 0,
          instance: null,
          result: null,
          error: null,
          createdAt: yield* DateTime.now,
          startedAt: null,
          endedAt: null
        }
        yield* atomically(Effect.andThen(store.insert(task), enqueue(task, type)))
        return task.id
      })

      const refused = (type: string) => (error: Schema.SchemaError) => new InvalidTask({ type, detail: error.message })

      const unknownType = (type: string) => new InvalidTask({ type, detail: "no plugin has registered this type" })

      /** Moves a task to `running`; `None` when it has ended, or was removed, and left its job behind. */
      const begin = (id: string): Effect.Effect<Option.Option<Task>, StoreError> =>
        Effect.gen(function* () {
          const found = yield* store.get(id)
          // `running`: the instance that had it died, or was cut off. `failed`: redriven.
          if (Option.isNone(found) || (isEnded(found.value.status) && found.value.status !== "failed")) {
            return Option.none()
          }
          const { attempts, startedAt, status } = found.value
          const started = yield* store.update(
            id,
            [status],
            {
              status: "running",
              attempts: attempts + 1,
              instance: instance.id,
              error: null,
              startedAt: startedAt ?? (yield* DateTime.now),
              endedAt: null
            },
            attempts
          )
          // Changed in between: look again.
          return Option.isSome(started) ? started : yield* begin(id)
        })

      /** Ends a run in the store, unless the task was canceled meanwhile, or another instance runs it now. */
      const end = Effect.fnUntraced(function* (task: Task, status: TaskStatus, change: Partial<Task>) {
        const endedAt = isEnded(status) ? yield* DateTime.now : null
        yield* store.update(task.id, ["running"], { ...change, status, endedAt }, task.attempts)
      })

      const handle = Effect.fnUntraced(function* (task: Task, run: TaskRun) {
        const registered = types.get(task.type)
        // Not here, or not now: its plugin is disabled, or belongs to another version of the app.
        if (registered === undefined) return yield* Job.snooze("1 second")
        const { handler, type } = registered
        return yield* Effect.gen(function* () {
          const params = yield* Schema.decodeUnknownEffect(Schema.toCodecJson(type.params))(task.params)
          const result = yield* handler(params, run)
          return (yield* Schema.encodeUnknownEffect(Schema.toCodecJson(type.result))(result)) as Schema.Json
        }).pipe(
          Effect.timeoutOrElse({
            duration: type.timeout,
            orElse: () => Effect.fail(new Error(`timed out after ${Duration.format(type.timeout)}`))
          })
        )
      })

      /** Runs a task's handler, and notes how it ended. `givenBack` tells why it was interrupted. */
      const attempt = (id: string, info: EventQueue.JobInfo, givenBack: () => boolean) =>
        Effect.uninterruptibleMask((restore) =>
          Effect.gen(function* () {
            const begun = yield* begin(id)
            if (Option.isNone(begun)) return
            const task = begun.value
            const exit = yield* handle(task, {
              id,
              attempt: info.attempt,
              progress: (progress) =>
                Effect.flatMap(Effect.orDie(store.update(id, ["running"], { progress }, task.attempts)), (updated) =>
                  Option.isSome(updated) ? Effect.void : Effect.interrupt
                )
            }).pipe(restore, Effect.exit)

            if (Exit.isSuccess(exit)) return yield* end(task, "succeeded", { result: exit.value, error: null })
            if (givenBack() || Cause.squash(exit.cause) instanceof Job.Snoozed) {
              yield* end(task, "pending", {})
            } else {
              yield* end(task, info.attempt < info.maxAttempts ? "pending" : "failed", {
                error: Cause.hasInterruptsOnly(exit.cause) ? "interrupted" : firstLine(Cause.squash(exit.cause))
              })
            }
            return yield* Effect.failCause(exit.cause)
          })
        )

      const run = Effect.fnUntraced(function* (id: string, info: EventQueue.JobInfo) {
        let givenBack = false
        // The fiber is known before the row says `running`: whoever cancels it then finds it here.
        const fiber = yield* FiberMap.run(
          running,
          id,
          attempt(id, info, () => givenBack)
        )
        const exit = yield* Effect.onInterrupt(Fiber.await(fiber), () => {
          // The instance stops, or has lost the job.
          givenBack = true
          return Fiber.interrupt(fiber)
        })
        if (Exit.isSuccess(exit)) return
        // Stopped because it was canceled: that is a good end.
        if (Option.exists(yield* store.get(id), ({ status }) => status === "canceled")) return
        return yield* exit
      })

      const housekeeping = Effect.gen(function* () {
        const { retention } = yield* TaskWorker
        const now = yield* DateTime.now
        const removed = yield* store.removeEndedBefore(DateTime.subtractDuration(now, retention))
        if (removed > 0) yield* Effect.logInfo(`Removed ${removed} old tasks`)
        const stale = DateTime.subtractDuration(now, "10 minutes")
        const unended = [
          ...(yield* store.list({ status: "pending", limit: 1_000 })),
          ...(yield* store.list({ status: "running", limit: 1_000 }))
        ]
        for (const task of unended) {
          if (DateTime.isGreaterThan(task.createdAt, stale)) continue
          const dead = yield* queue.deadLetter(RunTask, task.id)
          if (Option.isSome(dead)) {
            // Every worker that took it died: nobody was left to say so.
            yield* store.update(task.id, [task.status], { status: "failed", error: dead.value.lastError, endedAt: now })
            continue
          }
          // Stored, but never queued. A job that is queued, or waits for a retry, is not stored twice.
          const registered = types.get(task.type)
          if (task.status === "pending" && registered !== undefined) yield* enqueue(task, registered.type)
        }
      })

      return Context.make(
        Tasks,
        Tasks.of({
          register: (type, handler) =>
            Effect.contextWith((context: Context.Context<any>) =>
              types.has(type.name)
                ? Effect.fail(new InvalidTask({ type: type.name, detail: "registered twice" }))
                : Effect.acquireRelease(
                    Effect.sync(() => {
                      types.set(type.name, {
                        type,
                        handler: (params, run) => Effect.provideContext(handler(params as never, run), context)
                      })
                    }),
                    () => Effect.sync(() => types.delete(type.name))
                  )
            ),

          start: (type, params) =>
            Effect.flatMap(
              Effect.mapError(Schema.encodeUnknownEffect(Schema.toCodecJson(type.params))(params), refused(type.name)),
              (encoded) => startEncoded(type, encoded as Schema.Json)
            ),

          startUnknown: Effect.fnUntraced(function* (name, params) {
            const registered = types.get(name)
            if (registered === undefined) return yield* unknownType(name)
            const codec = Schema.toCodecJson(registered.type.params)
            yield* Effect.mapError(Schema.decodeUnknownEffect(codec)(params), refused(name))
            return yield* startEncoded(registered.type, params as Schema.Json)
          }),

          get,

          result: Effect.fnUntraced(function* (type, id) {
            const task = yield* get(id)
            return task.status === "succeeded"
              ? Option.some(yield* Schema.decodeUnknownEffect(Schema.toCodecJson(type.result))(task.result))
              : Option.none()
          }),

          list: store.list,

          cancel: Effect.fnUntraced(function* (id) {
            yield* get(id)
            const canceled = yield* store.update(id, ["pending", "running"], {
              status: "canceled",
              endedAt: yield* DateTime.now
            })
            if (Option.isNone(canceled)) return false
            yield* pubsub.publish(CancelTask, { id }, { skipSelf: false, afterCommit: true })
            return true
          }),

          redrive: Effect.fnUntraced(function* (ids) {
            const dead =
              ids === "all"
                ? (yield* queue.deadLetters(RunTask, { limit: 10_000 })).map(({ id }) => id)
                : yield* Effect.filter(ids, (id) => Effect.map(queue.deadLetter(RunTask, id), Option.isSome))
            for (const id of dead) {
              yield* store.update(id, ["failed", "pending"], { status: "pending", endedAt: null })
            }
            return yield* afterCommit.send(queue.redrive(RunTask, dead), dead.length, { channel: RunTask.channel })
          }),

          running: Effect.sync(() => Array.from(running, ([id]) => id))
        })
      ).pipe(
        Context.add(Runner, {
          run,
          stopLocal: (id) => FiberMap.remove(running, id),
          housekeeping
        })
      )
    })
  )

const firstLine = (error: unknown): string =>
  (error instanceof Error ? error.message : String(error)).split("\n", 1)[0] ?? ""

/**
 * The service that a worker mode names for tasks to be run.
 *
 * @since 0.2.0
 */
export const service = "async-task:process"

/**
 * The plugin: runs tasks where the worker mode serves {@link service}, stops those that are cancelled elsewhere, and lets one
 * instance of the cluster tidy up every hour.
 *
 * @since 0.1.0
 */
export const plugin = Plugin.make(names.name, {
  load: Effect.gen(function* () {
    const runner = yield* Runner
    const worker = yield* TaskWorker
    yield* PubSub.subscribe(CancelTask, ({ id }) => runner.stopLocal(id))
    yield* EventQueue.subscribe(RunTask, {
      concurrency: worker.concurrency,
      idle: Effect.flatMap(WorkerMode.serving(service), (serves) => (serves ? worker.idle : Effect.succeed(false))),
      process: ({ id }, info) => runner.run(id, info)
    })
    yield* Singleton.make(
      names.key("housekeeping"),
      runner.housekeeping.pipe(
        Effect.catchCause((cause) => Effect.logWarning("Tidying up tasks failed", cause)),
        Effect.andThen(Effect.sleep("1 hour")),
        Effect.forever
      ),
      { service }
    ).pipe(Effect.orDie)
  })
})
