/**
 * The HTTP API of the host: what the plugins do, over the wire.
 */

import * as HttpApi from "effect/http-api/HttpApi"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as OpenApi from "effect/http-api/OpenApi"
import * as Schema from "effect/Schema"
import { Task, Tasks } from "../plugins/async-task-manager/index.ts"
import { Auth, AuthStore } from "../plugins/auth/index.ts"
import { Collection, Collections } from "../plugins/data-source-main/index.ts"
import { DeathReason } from "../services/EventQueueStore.ts"

/** A backend or a store did not answer; try again. */
export class Unavailable extends Schema.TaggedError<Unavailable>("cohort/host/Unavailable")(
  "Unavailable",
  { detail: Schema.String },
  { httpApiStatus: 503 }
) {}

/** Something in the request cannot be accepted. */
export class BadRequest extends Schema.TaggedError<BadRequest>("cohort/host/BadRequest")(
  "BadRequest",
  { field: Schema.String, detail: Schema.String },
  { httpApiStatus: 400 }
) {}

/** There is no dead letter with this id. */
export class DeadLetterNotFound extends Schema.TaggedError<DeadLetterNotFound>("cohort/host/DeadLetterNotFound")(
  "DeadLetterNotFound",
  { id: Schema.String },
  { httpApiStatus: 404 }
) {}

const Errors = [Unavailable, BadRequest] as const

/** How much work waits, runs and has failed. */
export const Depth = Schema.Struct({
  ready: Schema.Int,
  delayed: Schema.Int,
  inFlight: Schema.Int,
  dead: Schema.Int
})

const Health = Schema.Struct({
  status: Schema.Literal("ok"),
  app: Schema.String,
  instance: Schema.String,
  plugins: Schema.Array(Schema.Struct({ name: Schema.String, enabled: Schema.Boolean })),
  runningTasks: Schema.Array(Schema.String),
  queue: Depth
})

class SystemGroup extends HttpApiGroup.make("system", { topLevel: true })
  .add(HttpApiEndpoint.get("health", "/health", { success: Health, error: [...Errors] }))
  .annotateMerge(OpenApi.annotations({ title: "System", description: "How this instance is doing" })) {}

class AuthGroup extends HttpApiGroup.make("auth")
  .add(
    HttpApiEndpoint.get("policy", "/policy", {
      success: Schema.Struct({
        policy: AuthStore.TokenPolicy,
        /** How often this instance has read the policy from the store. */
        loads: Schema.Int
      }),
      error: [...Errors]
    }),
    HttpApiEndpoint.put("setPolicy", "/policy", {
      payload: AuthStore.TokenPolicy,
      success: HttpApiSchema.NoContent,
      error: [...Errors]
    }),
    HttpApiEndpoint.post("issue", "/tokens", { success: Auth.Token, error: [...Errors] }),
    HttpApiEndpoint.post("revoke", "/tokens/revoke", {
      payload: Auth.Token,
      success: HttpApiSchema.NoContent,
      error: [...Errors]
    }),
    HttpApiEndpoint.post("check", "/tokens/check", {
      payload: Schema.Struct({ ...Auth.Token.fields, fresh: Schema.optionalKey(Schema.Boolean) }),
      success: Schema.Struct({ verdict: Auth.Verdict }),
      error: [...Errors]
    })
  )
  .prefix("/auth")
  .annotateMerge(OpenApi.annotations({ title: "Auth", description: "Token policy and revocation" })) {}

const collection = { collection: Schema.String }
const Row = Schema.Record(Schema.String, Schema.NullOr(Schema.Union([Schema.String, Schema.Finite, Schema.Boolean])))

class CollectionsGroup extends HttpApiGroup.make("collections")
  .add(
    HttpApiEndpoint.get("list", "/", { success: Schema.Array(Collection.Collection) }),
    HttpApiEndpoint.post("create", "/", {
      payload: Collection.Collection,
      success: HttpApiSchema.NoContent,
      error: [...Errors, Collections.NameTaken]
    }),
    HttpApiEndpoint.get("get", "/:collection", {
      params: collection,
      success: Schema.Struct({ ...Collection.Collection.fields, rows: Schema.Int }),
      error: [...Errors, Collections.CollectionNotFound]
    }),
    HttpApiEndpoint.post("addField", "/:collection/fields", {
      params: collection,
      payload: Collection.Field,
      success: HttpApiSchema.NoContent,
      error: [...Errors, Collections.CollectionNotFound, Collections.NameTaken]
    }),
    HttpApiEndpoint.delete("removeField", "/:collection/fields/:field", {
      params: { ...collection, field: Schema.String },
      success: HttpApiSchema.NoContent,
      error: [...Errors, Collections.CollectionNotFound, Collections.FieldNotFound]
    }),
    HttpApiEndpoint.get("rows", "/:collection/rows", {
      params: collection,
      query: {
        offset: Schema.optional(Schema.NumberFromString.check(Schema.isInt(), Schema.isGreaterThanOrEqualTo(0))),
        limit: Schema.optional(
          Schema.NumberFromString.check(Schema.isInt(), Schema.isBetween({ minimum: 1, maximum: 1_000 }))
        )
      },
      success: Schema.Array(Row),
      error: [...Errors, Collections.CollectionNotFound]
    }),
    HttpApiEndpoint.put("putRow", "/:collection/rows/:id", {
      params: { ...collection, id: Schema.String },
      payload: Row,
      success: Row,
      error: [...Errors, Collections.CollectionNotFound, Collections.InvalidRow]
    })
  )
  .prefix("/collections")
  .annotateMerge(OpenApi.annotations({ title: "Collections", description: "Collections, fields and rows" })) {}

class TasksGroup extends HttpApiGroup.make("tasks")
  .add(
    HttpApiEndpoint.get("list", "/", {
      query: {
        status: Schema.optional(Task.TaskStatus),
        limit: Schema.optional(
          Schema.NumberFromString.check(Schema.isInt(), Schema.isBetween({ minimum: 1, maximum: 1_000 }))
        )
      },
      success: Schema.Array(Task.Task),
      error: [...Errors]
    }),
    HttpApiEndpoint.post("start", "/", {
      payload: Schema.Struct({ type: Schema.NonEmptyString, params: Schema.Json }),
      success: Schema.Struct({ id: Schema.String }),
      error: [...Errors, Tasks.InvalidTask]
    }),
    HttpApiEndpoint.get("get", "/:id", {
      params: { id: Schema.String },
      success: Task.Task,
      error: [...Errors, Tasks.TaskNotFound]
    }),
    HttpApiEndpoint.post("cancel", "/:id/cancel", {
      params: { id: Schema.String },
      success: Schema.Struct({ canceled: Schema.Boolean }),
      error: [...Errors, Tasks.TaskNotFound]
    })
  )
  .prefix("/tasks")
  .annotateMerge(OpenApi.annotations({ title: "Tasks", description: "Long-running work" })) {}

/** A dead letter of the task queue; its id is the task's. */
export const DeadLetter = Schema.Struct({
  id: Schema.String,
  encoded: Schema.String,
  attempts: Schema.Int,
  reason: DeathReason,
  firstError: Schema.String,
  lastError: Schema.String,
  publishedAt: Schema.DateTimeUtcFromString,
  diedAt: Schema.DateTimeUtcFromString
})

export const Selection = Schema.Struct({ ids: Schema.Union([Schema.Literal("all"), Schema.Array(Schema.String)]) })
export const Count = Schema.Struct({ count: Schema.Int })

class DeadLettersGroup extends HttpApiGroup.make("deadLetters")
  .add(
    HttpApiEndpoint.get("list", "/", { success: Schema.Array(DeadLetter), error: [...Errors] }),
    HttpApiEndpoint.get("get", "/:id", {
      params: { id: Schema.String },
      success: DeadLetter,
      error: [...Errors, DeadLetterNotFound]
    }),
    HttpApiEndpoint.post("redrive", "/redrive", { payload: Selection, success: Count, error: [...Errors] }),
    HttpApiEndpoint.post("discard", "/discard", { payload: Selection, success: Count, error: [...Errors] })
  )
  .prefix("/dead-letters")
  .annotateMerge(OpenApi.annotations({ title: "Dead letters", description: "Tasks that failed for good" })) {}

export class Api extends HttpApi.make("cohort")
  .add(SystemGroup, AuthGroup, CollectionsGroup, TasksGroup, DeadLettersGroup)
  // A request that does not decode is told which field is wrong.
  .middleware(HttpApiMiddleware.ProblemDetails)
  .annotateMerge(
    OpenApi.annotations({ title: "Cohort host", description: "Three plugins on Cohort, on every instance alike" })
  ) {}
