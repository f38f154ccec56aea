from tests.serving.conftest import *
def answers_before_promotion(service): 
    r=service.post("/v1/recommend", {"user_id":"1"}); print(r.status_code, r.text)
    import glob,os
    for f in sorted(glob.glob('/tmp/ll*/session_latest/logs/serve/replica_*Ingress*'))[-1:]: print(open(f).read()[-6000:])
    return {}
import tests.serving.conftest as c
c.answers_before_promotion=answers_before_promotion
def test_x(service): pass
