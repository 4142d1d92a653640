/**
 * What the console's page asks its instance for, once a second, and what it may change.
 */
import * as HttpApi from "effect/http-api/HttpApi"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as HttpApiSecurity from "effect/http-api/HttpApiSecurity"
import * as OpenApi from "effect/http-api/OpenApi"
import * as Schema from "effect/Schema"
import * as Health from "../../services/Health.ts"
import { Alarm, Line, Resync } from "./Accounts.ts"
import { BadRequest, Count, DeadLetter, Depth, Selection, Unavailable } from "../Api.ts"

/** The action is not allowed to anyone, or not from there. */
export class Forbidden extends Schema.TaggedError<Forbidden>("cohort/host/Forbidden")(
  "Forbidden",
  { detail: Schema.String },
  { httpApiStatus: 403 }
) {}

/** The token is missing or wrong. */
export class Unauthorized extends Schema.TaggedError<Unauthorized>("cohort/host/Unauthorized")(
  "Unauthorized",
  { detail: Schema.String },
  { httpApiStatus: 401 }
) {}

/** Lets through who has the token, and asks from this very page or from no page at all. */
export class Operator extends HttpApiMiddleware.Service<Operator>()("cohort/host/page/Operator", {
  security: { bearer: HttpApiSecurity.bearer },
  error: [Forbidden, Unauthorized]
}) {}

/** A part of the state; `error` says why it is not known. */
const known = <S extends Schema.Top>(value: S) =>
  Schema.Union([Schema.Struct({ value }), Schema.Struct({ error: Schema.String })])

export type Known<A> = { readonly value: A } | { readonly error: string }

export const State = Schema.Struct({
  app: Schema.String,
  /** The instance that answers. */
  instance: Schema.String,
  at: Schema.DateTimeUtcFromMillis,
  /** Whether there is a token, and so anything that it allows. */
  actions: Schema.Boolean,
  members: Schema.Array(
    Schema.Struct({
      id: Schema.String,
      version: Schema.String,
      workerMode: Schema.String,
      plugins: Schema.Array(Schema.String),
      startedAt: Schema.DateTimeUtcFromMillis,
      lastSeen: Schema.DateTimeUtcFromMillis,
      /** `null`: it has not answered yet. */
      ready: Schema.NullOr(Schema.Boolean),
      /** Attempts that ended there, per second. */
      attempts: Schema.Number,
      /** Moments in which it may have missed messages, and leases it lost, since it started. */
      gaps: Schema.Int,
      leasesLost: Schema.Int,
      /** What it has warned of lately, the oldest first. */
      log: Schema.Array(Line)
    })
  ),
  health: Schema.Array(
    Schema.Struct({
      component: Schema.String,
      findings: Schema.Array(Schema.Struct({ instance: Schema.String, status: Health.Status, detail: Schema.String }))
    })
  ),
  /** Counts are sums over the live instances, since each started; rates are per second. */
  channels: Schema.Array(
    Schema.Struct({
      channel: Schema.String,
      depth: known(Depth),
      /** The live instances that take from it. */
      servedBy: Schema.Array(Schema.String),
      sent: Schema.Int,
      sentRate: Schema.Number,
      /** Attempts that ended. */
      consumed: Schema.Int,
      consumedRate: Schema.Number
    })
  ),
  alarms: Schema.Array(Alarm),
  locks: known(
    Schema.Array(
      Schema.Struct({
        key: Schema.String,
        holder: Schema.String,
        fence: Schema.Number,
        ttl: Schema.Number,
        /** How many wait, by instance, the first in line first. */
        waiters: Schema.Array(Schema.Struct({ instance: Schema.String, count: Schema.Int }))
      })
    )
  ),
  caches: Schema.Array(
    Schema.Struct({ name: Schema.String, hits: Schema.Int, misses: Schema.Int, rate: Schema.Number })
  ),
  sync: Schema.Array(
    Schema.Struct({
      channel: Schema.String,
      instances: Schema.Array(
        Schema.Struct({
          instance: Schema.String,
          /** Its last number. */
          sent: Schema.Int,
          /** How many messages of the others it has not heard yet. */
          behind: Schema.Int,
          resync: Resync
        })
      )
    })
  )
})

const channel = { channel: Schema.NonEmptyString }
const page = (maximum: number) =>
  Schema.NumberFromString.check(Schema.isInt(), Schema.isBetween({ minimum: 0, maximum }))
const Errors = [Unavailable, BadRequest] as const
const Change = Schema.Struct({ ...channel, ...Selection.fields })

class LookGroup extends HttpApiGroup.make("look")
  .add(
    HttpApiEndpoint.get("state", "/state", { success: State }),
    HttpApiEndpoint.get("deadLetters", "/dead-letters", {
      query: { ...channel, offset: page(Number.MAX_SAFE_INTEGER), limit: page(200) },
      success: Schema.Array(DeadLetter),
      error: [...Errors]
    })
  )
  .prefix("/console/api")
  .annotateMerge(OpenApi.annotations({ title: "Look", description: "How the cluster is doing" })) {}

class ActGroup extends HttpApiGroup.make("act")
  .add(
    HttpApiEndpoint.post("token", "/token", { success: HttpApiSchema.NoContent }),
    HttpApiEndpoint.post("redrive", "/redrive", { payload: Change, success: Count, error: [...Errors] }),
    HttpApiEndpoint.post("discard", "/discard", { payload: Change, success: Count, error: [...Errors] })
  )
  .prefix("/console/api")
  .middleware(Operator)
  .annotateMerge(OpenApi.annotations({ title: "Act", description: "What needs the token" })) {}

export class Api extends HttpApi.make("cohort-console")
  .add(LookGroup, ActGroup)
  .middleware(HttpApiMiddleware.ProblemDetails)
  .annotateMerge(OpenApi.annotations({ title: "Cohort console" })) {}
