import copy, time, torch, pytest
from bluedit.sessions import Session
from bluedit.methods import METHODS, blue
from bluedit.models import EditableModel
from bluedit.patches import Patch
pytestmark = pytest.mark.filterwarnings("ignore:the change of layer")
def test_a(tiny_gpt2, world_facts, moments, tmp_path):
    for name in METHODS:
        m = EditableModel(copy.deepcopy(tiny_gpt2.model), tiny_gpt2.tokenizer)
        t=time.time()
        single = METHODS[name].strategy.one_layer
        s = Session(m, method=name, layers=[1] if single else [0,1,2], templates=["{}"], corpus=moments(48), settings=({"ft_num_steps":3} if "ft" in name else {"v_num_grad_steps":3} | ({"nullspace_threshold":0.5} if name=="alphaedit" else {"lambda":2.0})))
        for i in range(3):
            s.apply(world_facts[i:i+1] if "rome" in name else world_facts[2*i:2*i+2])
        print(name, time.time()-t, [ (w.layer, round(w.relative_norm,3), w.null_space_rank) for w in s.finish().manifest.weights.values()] )
        p = s.patches[0]
        c = next(iter(p.changes.values()))
        for k, v in c.tensors().items(): print("   ", k, v.shape, v.stride(), v.dtype)
        path = p.save(tmp_path/ name)
        l = Patch.load(path)
        for n in p.changes: assert torch.equal(p.changes[n].dense(), l.changes[n].dense())
