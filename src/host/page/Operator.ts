/**
 * Who may act: whoever has the token of `COHORT_ADMIN_TOKEN`, in a header that no browser sends by itself. A page from
 * elsewhere is refused even so.
 */
import { createHash, timingSafeEqual } from "node:crypto"
import * as Effect from "effect/Effect"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { Forbidden, Operator, Unauthorized } from "./Api.ts"

/** Of one length, whatever the token's. */
const digest = (token: Redacted.Redacted<string>) => createHash("sha256").update(Redacted.value(token)).digest()

/** Whether a page of another origin asks. Where no page does, neither header is there. */
const isForeign = ({ headers }: HttpServerRequest.HttpServerRequest): boolean => {
  const site = headers["sec-fetch-site"]
  if (site !== undefined && site !== "same-origin" && site !== "none") return true
  const { host, origin } = headers
  if (origin === undefined) return false
  return !URL.canParse(origin) || new URL(origin).host !== host
}

export const layer = (token: Redacted.Redacted<string> | undefined): Layer.Layer<Operator> => {
  const expected = token === undefined ? undefined : digest(token)
  return Layer.succeed(
    Operator,
    Operator.of({
      bearer: (handler, { credential }) =>
        Effect.gen(function* () {
          if (isForeign(yield* HttpServerRequest.HttpServerRequest)) {
            return yield* new Forbidden({ detail: "the request comes from another page" })
          }
          if (expected === undefined) {
            return yield* new Forbidden({ detail: "read-only: COHORT_ADMIN_TOKEN is not set" })
          }
          if (!timingSafeEqual(digest(credential), expected)) {
            return yield* new Unauthorized({ detail: "the token is missing or wrong" })
          }
          return yield* handler
        })
    })
  )
}
