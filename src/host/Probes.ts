/**
 * What machines ask an instance: `/livez` and `/readyz` for its health, with the findings of every component (503 when
 * it is not), and `/metrics` for Prometheus.
 */
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import * as Schema from "effect/Schema"
import * as Health from "../services/Health.ts"
import * as Metrics from "../services/Metrics.ts"

const answer = (isWell: (report: typeof Health.Report.Type) => boolean) =>
  Effect.gen(function* () {
    const { report } = yield* Health.Health
    const found = yield* report
    const body = yield* Effect.orDie(Schema.encodeEffect(Health.Report)(found))
    return HttpServerResponse.jsonUnsafe(body, { status: isWell(found) ? 200 : 503 })
  })

export const layer = Layer.mergeAll(
  Layer.effectDiscard(Metrics.fromZero),
  HttpRouter.add(
    "GET",
    "/livez",
    answer(({ live }) => live)
  ),
  HttpRouter.add(
    "GET",
    "/readyz",
    answer(({ ready }) => ready)
  ),
  PrometheusMetrics.layerHttp()
)
