/**
 * The HTTP API on the services of one instance.
 */
import * as Effect from "effect/Effect"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import { Tasks } from "../plugins/async-task-manager/index.ts"
import { Auth } from "../plugins/auth/index.ts"
import { CollectionStore, Collections } from "../plugins/data-source-main/index.ts"
import type { StoreError } from "../plugins/StoreError.ts"
import type { CacheError } from "../services/Cache.ts"
import * as EventQueue from "../services/EventQueue.ts"
import { Instance } from "../services/Instance.ts"
import type { LockError } from "../services/Lock.ts"
import { PluginHost } from "../services/PluginHost.ts"
import type { PubSubError } from "../services/PubSub.ts"
import type { SyncMessageError } from "../services/SyncMessage.ts"
import { Api, BadRequest, DeadLetterNotFound, Unavailable } from "./Api.ts"

type BackendError = StoreError | CacheError | PubSubError | SyncMessageError | EventQueue.EventQueueError | LockError

const backendErrors = [
  "StoreError",
  "CacheError",
  "PubSubError",
  "SyncMessageError",
  "EventQueueError",
  "LockError"
] as const

const isBackendError = (error: unknown): error is BackendError =>
  Predicate.hasProperty(error, "_tag") && (backendErrors as ReadonlyArray<unknown>).includes(error._tag)

/** Says of a backend's failure whether the request was wrong or the time was; leaves other failures as they are. */
export const answer = <A, E, R>(
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, Exclude<E, BackendError> | Unavailable | BadRequest, R> =>
  Effect.catch(effect, (error): Effect.Effect<never, Exclude<E, BackendError> | Unavailable | BadRequest> => {
    if (!isBackendError(error)) return Effect.fail(error as Exclude<E, BackendError>)
    return error._tag !== "StoreError" && error.reason._tag === "InvalidInput"
      ? Effect.fail(new BadRequest({ field: error.reason.field, detail: error.reason.detail }))
      : Effect.andThen(
          Effect.logWarning("Request failed", error),
          Effect.fail(new Unavailable({ detail: error.message }))
        )
  })

const system = HttpApiBuilder.group(
  Api,
  "system",
  Effect.fn(function* (handlers) {
    const instance = yield* Instance
    const host = yield* PluginHost
    const tasks = yield* Tasks.Tasks
    const queue = yield* EventQueue.EventQueue
    return handlers.handleAll({
      health: () =>
        answer(
          Effect.gen(function* () {
            const plugins = yield* host.plugins
            return {
              status: "ok" as const,
              app: instance.app,
              instance: instance.id,
              plugins: plugins.map(({ enabled, name }) => ({ name, enabled })),
              runningTasks: yield* tasks.running,
              queue: yield* queue.depth(Tasks.RunTask)
            }
          })
        )
    })
  })
)

const auth = HttpApiBuilder.group(
  Api,
  "auth",
  Effect.fn(function* (handlers) {
    const auth = yield* Auth.Auth
    return handlers.handleAll({
      policy: () => answer(Effect.all({ policy: auth.policy, loads: auth.policyLoads })),
      setPolicy: ({ payload }) => answer(auth.setPolicy(payload)),
      issue: () => answer(auth.issue),
      revoke: ({ payload }) => answer(auth.revoke(payload)),
      check: ({ payload: { fresh, ...token } }) =>
        answer(Effect.map(auth.check(token, { fresh }), (verdict) => ({ verdict })))
    })
  })
)

const collections = HttpApiBuilder.group(
  Api,
  "collections",
  Effect.fn(function* (handlers) {
    const collections = yield* Collections.Collections
    const store = yield* CollectionStore.CollectionStore
    return handlers.handleAll({
      list: () => collections.list,
      create: ({ payload }) => answer(collections.create(payload)),
      get: ({ params }) =>
        answer(
          Effect.gen(function* () {
            const collection = yield* collections.get(params.collection)
            return { ...collection, rows: yield* store.countRows(params.collection) }
          })
        ),
      addField: ({ params, payload }) => answer(collections.addField(params.collection, payload)),
      removeField: ({ params }) => answer(collections.removeField(params.collection, params.field)),
      rows: ({ params, query }) =>
        answer(
          Effect.andThen(
            collections.get(params.collection),
            store.rows(params.collection, { offset: query.offset ?? 0, limit: query.limit ?? 100 })
          )
        ),
      putRow: ({ params, payload }) => answer(collections.putRow(params.collection, params.id, payload))
    })
  })
)

const tasks = HttpApiBuilder.group(
  Api,
  "tasks",
  Effect.fn(function* (handlers) {
    const tasks = yield* Tasks.Tasks
    return handlers.handleAll({
      list: ({ query }) => answer(tasks.list(query)),
      start: ({ payload }) => answer(Effect.map(tasks.startUnknown(payload.type, payload.params), (id) => ({ id }))),
      get: ({ params }) => answer(tasks.get(params.id)),
      cancel: ({ params }) => answer(Effect.map(tasks.cancel(params.id), (canceled) => ({ canceled })))
    })
  })
)

const deadLetters = HttpApiBuilder.group(
  Api,
  "deadLetters",
  Effect.fn(function* (handlers) {
    const queue = yield* EventQueue.EventQueue
    const tasks = yield* Tasks.Tasks
    return handlers.handleAll({
      list: () => answer(queue.deadLetters(Tasks.RunTask)),
      get: ({ params }) =>
        answer(
          Effect.flatMap(queue.deadLetter(Tasks.RunTask, params.id), (dead) =>
            dead._tag === "Some" ? Effect.succeed(dead.value) : Effect.fail(new DeadLetterNotFound({ id: params.id }))
          )
        ),
      redrive: ({ payload }) => answer(Effect.map(tasks.redrive(payload.ids), (count) => ({ count }))),
      discard: ({ payload }) => answer(Effect.map(queue.discard(Tasks.RunTask, payload.ids), (count) => ({ count })))
    })
  })
)

export const layer = Layer.mergeAll(system, auth, collections, tasks, deadLetters)
