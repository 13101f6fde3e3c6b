-- Sends feedback about the predictions whose ids are the lines of a file, each with an idempotency key that never came
-- before, and reports as one line (the format of rotate.lua). Arguments after "--": the file, and a word for the keys.

local heads, count, sent, word = {}, 0, 0, ""

function init(args)
   for id in io.lines(args[1]) do
      count = count + 1
      heads[count] = '{"prediction_id":"' .. id .. '","name":"late","value":true,"source":{"type":"SYSTEM","id":"arrivals"}}'
   end
   word = args[2]
   wrk.headers["Content-Type"] = "application/json"
end

function request()
   sent = sent + 1
   wrk.headers["Idempotency-Key"] = word .. sent
   return wrk.format("POST", nil, nil, heads[sent % count + 1])
end

function done(summary, latency, requests)
   local e = summary.errors
   io.write(string.format(
      "\nmeasured requests=%d duration_us=%d bytes=%d p50_us=%d p90_us=%d p99_us=%d max_us=%d " ..
      "connect=%d read=%d write=%d status=%d timeout=%d\n",
      summary.requests, summary.duration, summary.bytes,
      latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max,
      e.connect, e.read, e.write, e.status, e.timeout))
end
